# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import timm
import torch
from equality import assert_accelerated_equals, assert_equal, flat, run, stir
from timm.layers.halo_attn import HaloAttn
from torch import nn

from visionattn import accelerate

SMALL = dict(embed_dim=16, depths=(2, 2), num_heads=(2, 4), num_classes=5, drop_path_rate=0.0)
SWIN, V2, CR = "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "swinv2_cr_tiny_ns_224"
LOOSE = dict(strict_img_size=False)


@pytest.mark.parametrize(
    ("name", "size", "args"),
    [
        (SWIN, (56, 56), dict(img_size=56)),
        # Maps of 15x23 and 8x12 in windows of 4x7: shifted and padded, which timm does in this order.
        (SWIN, (60, 92), dict(img_size=(60, 92), window_size=(4, 7))),
        (SWIN, (20, 44), dict(img_size=(20, 44), always_partition=True, qkv_bias=False)),
        (SWIN, (20, 44), dict(img_size=(20, 44), head_dim=6)),
        (SWIN, (68, 100), dict(img_size=56, **LOOSE)),
        (SWIN, (68, 100), dict(img_size=56, features_only=True, out_indices=(0, 1), **LOOSE)),
        (V2, (60, 92), dict(img_size=(60, 92), window_size=7, pretrained_window_sizes=(3, 2))),
        (V2, (68, 100), dict(img_size=64, window_size=4, qkv_bias=False, **LOOSE)),
        (CR, (60, 92), dict(img_size=(64, 64), window_size=(4, 7), **LOOSE)),
    ],
)
def test_swin_transformers(name, size, args):
    model = timm.create_model(name, **{**SMALL, **args}).eval()
    assert_accelerated_equals(model, size, count=4)


@pytest.mark.parametrize(
    "args",
    [
        {},
        dict(stride=2),
        dict(stride=2, avg_down=True, qkv_bias=True),
        dict(stride=2, block_size=5, halo_size=1, scale_pos_embed=True),
        dict(dim_out=24, num_heads=2, dim_head=8, block_size=4, halo_size=2),
    ],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_halo_attention(args, batch):
    side = args.get("block_size", 8)
    attention = HaloAttn(3, **{"dim_out": 16, "num_heads": 4, **args})
    assert_accelerated_equals(attention, (2 * side, 3 * side), count=1, batch=batch)


# A batch norm's backward depends on strides, most of all for one image: with statistics that are fixed, as others would
# magnify rounding.
def test_batch_norms_around_halo_attention_train_equally():
    layers = [nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), HaloAttn(16, num_heads=2, stride=2), nn.BatchNorm2d(16)]
    assert_accelerated_equals(nn.Sequential(*layers).eval(), (16, 8), count=1, batch=1)


@pytest.mark.slow
def test_halo_net():
    assert_accelerated_equals(timm.create_model("halonet26t", num_classes=3).eval(), (256, 256), count=3, batch=1)


def test_a_halo_map_of_no_whole_blocks_is_refused_as_timm_does():
    attention = HaloAttn(16)
    accelerate(attention)
    with pytest.raises(AssertionError):
        attention(torch.randn(1, 16, 12, 16))


def test_an_input_size_can_be_set_afterwards():
    model = stir(timm.create_model(SWIN, img_size=56, **SMALL)).eval()
    fast = copy.deepcopy(model)
    accelerate(fast)
    for each in (model, fast):
        each.set_input_size(img_size=(64, 88), window_size=(8, 11))
    image = torch.randn(2, 3, 64, 88)
    torch.testing.assert_close(fast(image), model(image), rtol=1e-5, atol=1e-5)


def test_attention_dropout_leaves_training_to_timm_and_evaluation_to_us():
    model = timm.create_model(SWIN, img_size=56, attn_drop_rate=0.3, **SMALL)
    report = accelerate(model.train())
    assert not report.replaced
    assert {entry.reason for entry in report.left} == {"attention dropout 0.3 in training"}
    model.eval()
    assert len(accelerate(model).replaced) == 4
    image = torch.randn(1, 3, 56, 56)
    assert torch.equal(model(image), model(image))
    model.train()
    assert not torch.equal(model(image), model(image))


def test_the_bias_network_of_v2_cr_drops_in_training_only():
    model = stir(timm.create_model(CR, img_size=64, window_size=4, **SMALL)).eval()
    assert len(accelerate(model).replaced) == 4
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(image), model(image))
    assert not torch.equal(model.train()(image), model(image))


# timm's own V2 overflows in float16.
@pytest.mark.parametrize(("name", "dtype"), [(SWIN, torch.bfloat16), (SWIN, torch.float16), (V2, torch.bfloat16)])
def test_half_precision_errs_no_more_than_timm(name, dtype):
    model = stir(timm.create_model(name, img_size=(60, 92), window_size=7, **SMALL)).eval()
    fast = copy.deepcopy(model)
    accelerate(fast)
    image = torch.randn(2, 3, 60, 92)
    with torch.no_grad():
        exact = flat(model(image))
        with torch.autocast("cpu", dtype):
            cast, ours = flat(model(image)), flat(fast(image))
        pure = flat(copy.deepcopy(fast).to(dtype)(image.to(dtype)))
    scale = float(exact.abs().max())
    allowed = 2 * float((cast - exact).abs().max()) + 8 * torch.finfo(dtype).eps * scale
    assert float((ours - exact).abs().max()) <= allowed
    # Weights and norms are rounded too here.
    assert float((pure.float() - exact).abs().max()) <= 2 * allowed


@pytest.mark.slow
def test_compiling_and_checkpointing_change_nothing():
    model = stir(timm.create_model(SWIN, img_size=(60, 92), window_size=(4, 7), **SMALL)).eval().double()
    accelerate(model)
    image = torch.randn(2, 3, 60, 92, dtype=torch.float64)
    expected = run(model, image)
    model.set_grad_checkpointing()
    assert_equal(run(model.train(), image), expected, 1e-12)
    model.set_grad_checkpointing(False)
    compiled = torch.compile(model.eval(), backend="aot_eager", fullgraph=True)
    assert_equal(
        {name.removeprefix("_orig_mod."): value for name, value in run(compiled, image).items()}, expected, 1e-9
    )


def test_modules_that_users_changed_are_left():
    swin = timm.models.swin_transformer

    class Own(swin.SwinTransformerBlock):
        def _attn(self, x):
            return x

    class Renamed(swin.SwinTransformerBlock):
        pass

    def block(kind=swin.SwinTransformerBlock):
        return kind(16, (8, 8), num_heads=2, window_size=4)

    hooked, patched, other = block(), block(), block()
    hooked.attn.register_forward_hook(lambda *_: None)
    patched._attn = lambda x: x
    other.attn = nn.Identity()
    report = accelerate(nn.ModuleList([block(Own), block(Renamed), hooked, patched, other]))
    assert [entry.name for entry in report.replaced] == ["1"]
    reasons = {entry.name: entry.reason for entry in report.left}
    assert "_attn of its own" in reasons["0"]
    assert "hooks" in reasons["2"]
    assert "_attn was replaced" in reasons["3"]
    assert "it has no attn.relative_position_bias_table" in reasons["4"]
