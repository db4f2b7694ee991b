# SPDX-License-Identifier: Apache-2.0
"""TransNeXt's layers: positions by definition, maps of any size, dense backbones, errors."""

import math

import pytest
import torch
import torch.nn.functional as F

import visionattn
from visionattn.layers import MLPS, AggregatedAttention, CosineGlobalAttention, create_mixer
from visionattn.models import dense_args
from visionattn.models.transnext import transnext

MIXERS = {"aggregated": {"reduction": 3, "pretrained_size": 6}, "cosine_global": {"pretrained_size": (6, 5)}}


def redrawn(layer):
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer.eval()


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 5), (9, 6), (10, 7)], ids=str)
@pytest.mark.parametrize("pool", [None, 3])
def test_biases_are_the_mlps_answer_for_each_pair(size, pool):
    layer = redrawn(AggregatedAttention(8, 2, reduction=3, pool_size=pool, pretrained_size=(5, 1)).double())
    grid = layer.key_size(*size)
    # The averages' places are the averages of places.
    axes = [F.adaptive_avg_pool1d(torch.arange(n).float()[None], m)[0] for n, m in zip(size, grid, strict=True)]
    bias = layer.position_bias(*size).unflatten(3, grid)
    for _ in range(20):
        at = [torch.randint(n, ()).item() for n in (*size, *grid)]
        r = torch.stack([(at[0] - axes[0][at[2]]) / 4, at[1] - axes[1][at[3]]]) * 8
        offsets = r.sign() * torch.log2(r.abs() + 1) / 3
        assert torch.allclose(bias[(slice(None), *at)], layer.cpb_mlp(offsets.double()))


@pytest.mark.parametrize("side", [4, 7])
def test_interpolated_biases_are_resized_on_both_sides(side):
    layer = redrawn(AggregatedAttention(8, 2, reduction=2, pretrained_size=3, map_size=4).double())
    computed = layer._computed(4, 4)
    expected = F.interpolate(computed.flatten(1, 2), (side // 2, side // 2), mode="bilinear").flatten(2)
    expected = F.interpolate(expected.mT.unflatten(2, (4, 4)), (side, side), mode="bilinear").permute(0, 2, 3, 1)
    assert torch.allclose(layer.position_bias(side, side), expected)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (3, 11), (8, 8)], ids=str)
@pytest.mark.parametrize("name", MIXERS)
def test_mixers_take_maps_of_any_size(name, size):
    layer = redrawn(create_mixer(name, 12, 3, **MIXERS[name]))
    x = torch.randn(2, *size, 12, requires_grad=True)
    out = layer(x)
    out.square().sum().backward()
    assert out.shape == x.shape and torch.isfinite(out).all() and torch.isfinite(x.grad).all()
    assert torch.allclose(layer(x[1:]), out[1:], atol=1e-5)  # images do not mix


def test_scales_grow_with_the_number_of_keys():
    layer = CosineGlobalAttention(8, 2)
    q = torch.randn(1, 3, 3, 2, 4)
    factor = 1 / 0.24 * math.log(49)
    assert torch.allclose(layer.scaled(q, math.log(49)), (q + layer.query_embed.view(2, 4)) * factor, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MIXERS)
def test_mixers_work_in_half_precision(name, dtype):
    layer = redrawn(create_mixer(name, 12, 3, **MIXERS[name]))
    x = torch.randn(2, 7, 6, 12)
    expected = layer(x)
    out = layer.to(dtype)(x.to(dtype))
    assert out.dtype == dtype and (out - expected).norm() < 0.05 * expected.norm()


def test_the_gates_convolution_sees_one_half():
    mlp = redrawn(MLPS["conv_glu"](4, 12))
    x = torch.randn(2, 5, 3, 4)
    gate, value = (x @ mlp.fc1.weight.T + mlp.fc1.bias).split(8, -1)
    gate = F.conv2d(gate.movedim(-1, 1), mlp.conv.weight, mlp.conv.bias, padding=1, groups=8).movedim(1, -1)
    assert torch.allclose(mlp(x), mlp.fc2(F.gelu(gate) * value), atol=1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AggregatedAttention(8, 3), "num_heads=3 must be a positive divisor of dim=8"),
        (lambda: AggregatedAttention(8, 2, window_size=4), "window_size=4 must be odd"),
        (lambda: AggregatedAttention(8, 2, reduction=0), "reduction=0 must be at least 1"),
        (lambda: AggregatedAttention(8, 2, pool_size=0), "pool_size=0 must be at least 1"),
        (lambda: CosineGlobalAttention(8, 2, pretrained_size=0), "pretrained_size=0 must be positive"),
        (lambda: CosineGlobalAttention(8, 2, map_size=(3, 0)), r"map_size=\(3, 0\) must be positive"),
        (lambda: transnext(reductions=(8, 4)), r"reductions=\(8, 4\) must have one entry for each of the 4 stages"),
        (lambda: transnext(window_sizes=(3,)), r"window_sizes=\(3,\) must have one entry"),
        (lambda: transnext(dense="resize"), "dense='resize' must be one of"),
        (lambda: transnext(img_size=0), "img_size=0 and pretrain_size=None must be positive"),
    ],
)
def test_wrong_arguments_are_named(build, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build()


def test_the_dense_backbone_interpolates_and_loads_the_classifiers_weights():
    args = visionattn.models.FAMILIES["transnext"].micros["va_transnext_micro"]
    classifier = redrawn(visionattn.create_model("va_transnext_micro", **args))
    assert dense_args("va_transnext_micro")["dense"] == "interpolate"
    x = torch.randn(1, 3, 96, 64)
    found = []
    for mode in ("interpolate", "extrapolate"):
        model = transnext(**args, dense=mode).eval()
        model.load_state_dict(classifier.state_dict())
        found.append(model.forward_intermediates(x, intermediates_only=True))
    plain = classifier.forward_intermediates(x, intermediates_only=True)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(plain, found[1], strict=True))
    assert not any(torch.allclose(a, b, atol=1e-4) for a, b in zip(plain, found[0], strict=True))
