# SPDX-License-Identifier: Apache-2.0
"""Any mixer in the plain pyramid."""

import pytest
import timm
import torch

import visionattn
from visionattn.models.pyramid import NAMES

SMALL = {"depths": (2, 1, 1, 1), "embed_dim": 16, "num_heads": (2, 4, 4, 8), "num_classes": 5}


def small(**kwargs):
    return timm.create_model("va_pyramid_tiny", **{**SMALL, **kwargs})


@pytest.mark.parametrize("name", NAMES)
def test_every_mixer_takes_any_map_and_learns(name):
    model = small(mixers=name, features_only=True)
    for size in ((61, 75), (7, 3), (1, 1)):
        x = torch.randn(2, 3, *size)
        features = model(x)
        for feature, stride in zip(features, (4, 8, 16, 32), strict=True):
            assert feature.shape[2:] == tuple(-(-side // stride) for side in size) and feature.isfinite().all()
        if size == (61, 75):
            sum((f * torch.randn_like(f)).sum() for f in features).backward()
            assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_mixer_works_under_autocast_and_in_batches(name):
    model = small(mixers=name).eval()
    x = torch.randn(3, 3, 70, 50)
    together = model(x)
    # An image's result is its own: what is routed or clustered is so within it.
    assert torch.allclose(together, torch.cat([model(image[None]) for image in x]), atol=1e-5, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).isfinite().all()
    assert model.bfloat16()(x.bfloat16()).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_mixer_compiles_to_one_graph(name):
    torch._dynamo.reset()
    model = small(mixers=name).eval()
    x = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), model(x), atol=1e-5, rtol=1e-4)


def test_stages_and_blocks_have_mixers_and_arguments_of_their_own():
    model = small(
        mixers=("shifted_window", "gated_cnn", ("dilated",), "global"),
        mixer_kwargs=({"window_size": 5}, {"kernel_size": 3}, {"kernel_size": 5}, {}),
    )
    first, second = (block.attn for block in model.stages[0].blocks)
    assert (first.shift, second.shift) == (0, 2)
    assert model.stages[1].blocks[0].attn.conv.kernel_size == (3, 3)
    assert [type(stage.blocks[0].attn).__name__ for stage in model.stages] == [
        "WindowAttention", "GatedConvolution", "NeighborhoodAttention", "GlobalAttention"]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"mixers": "shiftd_window"}, r"unknown mixer 'shiftd_window'; did you mean shifted_window"),
        ({"mixers": ("window", "global")}, r"mixers=.* one entry for each of the 4 stages"),
        ({"mixer_kwargs": [{}]}, r"mixer_kwargs=.* one entry for each of the 4 stages"),
        ({"mixers": ("window", "window", "window", ("global", "window"))}, r"stages have \(2, 1, 1, 1\) blocks"),
    ],
)
def test_wrong_mixers_are_named(args, message):
    with pytest.raises(ValueError, match=message):
        small(**args)


def test_sizes_have_the_proportions_of_nat():
    for name in ("tiny", "small", "base"):
        counts = []
        for model in (f"va_pyramid_{name}", f"va_nat_{name}"):
            with torch.device("meta"):
                counts.append(sum(p.numel() for p in visionattn.create_model(model).parameters()))
        assert abs(counts[0] / counts[1] - 1) < 0.01
