# SPDX-License-Identifier: Apache-2.0
"""ContMix, merged branches and the host that looks twice: what the golden records do not show."""

import copy

import pytest
import torch
from torch.nn import functional as F

import visionattn
from visionattn.layers import ContMix, DilatedReparam, create_mixer, fuse
from visionattn.layers.contmix import TapBias

MICRO = {"depths": (1, 1, 1, 1), "focus_depths": (2, 1), "dims": (8, 8, 16, 16), "num_heads": (2, 2),
         "kernel_sizes": (5, 5, 7, 5), "small_kernel_size": 3, "head_dim": 12, "num_classes": 5}  # fmt: skip


def redrawn(module):
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            torch.nn.init.normal_(tensor, std=0.3)
    for name, buffer in module.named_buffers():
        if name.endswith("running_var"):
            buffer.abs_().add_(0.5)
    return module


def micro(**kwargs):
    return redrawn(visionattn.create_model("va_overlock_xt", **{**MICRO, **kwargs})).eval()


def test_taps_have_the_bias_of_their_offset():
    layer = redrawn(TapBias(2, 3))
    biases = layer(4, 5).unflatten(3, (3, 3))
    for i, j, a, b in [(0, 0, 0, 0), (0, 4, 2, 1), (1, 2, 1, 1), (3, 3, 0, 2)]:
        top, left = min(max(i - 1, 0), 1), min(max(j - 1, 0), 2)
        assert torch.equal(biases[i, j, :, a, b], layer.rpb[:, top + a - i + 2, left + b - j + 2])


SMALL = {(3, 27): (13, 116), (27, 3): (116, 13), (6, 6): (13, 13), (1, 1): (13, 13)}


@pytest.mark.parametrize(("size", "enlarged"), [*SMALL.items(), ((13, 40), (13, 40)), ((20, 14), (20, 14))])
def test_maps_smaller_than_the_kernels_are_enlarged(size, enlarged):
    assert ContMix(16, 2, 13)._enlarged(*size) == enlarged


def test_kernels_follow_the_context_alone_where_the_map_is_constant():
    layer = redrawn(ContMix(16, 2, 5, 3, context_dim=4)).eval()
    x = torch.randn(1, 9, 8, 16)
    moved = x.clone()
    moved[..., 12:] += torch.randn(4)
    kernels, other = (layer._kernels(t.permute(0, 3, 1, 2)) for t in (x, moved))
    assert all(k.shape == (1, 9, 8, 2, s) for k, s in zip(kernels, (9, 25), strict=True))
    assert all(torch.allclose(k.sum(-1), torch.ones(())) for k in kernels)
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(kernels, other, strict=True))
    same = layer._kernels(torch.randn(1, 16, 1, 1).expand(-1, -1, 9, 8))
    layer.large_bias.rpb.data.zero_()
    flat = layer._kernels(torch.randn(1, 16, 1, 1).expand(-1, -1, 9, 8))[1]
    assert torch.allclose(flat, flat[:, :1, :1].expand_as(flat), atol=1e-5)
    assert not torch.allclose(same[1], same[1][:, :1, :1].expand_as(same[1]), atol=1e-3)


@pytest.mark.parametrize("context_dim", [0, 4])
@pytest.mark.parametrize("size", [(9, 7), (3, 8), (1, 1)])
def test_gradients_are_right_on_maps_of_any_size(context_dim, size):
    layer = redrawn(ContMix(12, 2, 5, 3, context_dim, grid=2)).double().eval()
    x = torch.randn(1, *size, 12, dtype=torch.float64, requires_grad=True)
    out = layer(x)
    direction, cotangent = torch.randn_like(x), torch.randn_like(out)
    (grad,) = torch.autograd.grad(out, x, cotangent)
    step = 1e-6
    change = (layer(x + step * direction) - layer(x - step * direction)) / (2 * step)
    assert out.shape == x.shape
    assert torch.allclose((grad * direction).sum(), (change * cotangent).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kernel_size": 8}, "kernel_size=8 must be one of 5, 7, 9"),
        ({"small_kernel_size": 4}, "small_kernel_size=4 must be odd"),
        ({"small_kernel_size": 9}, "small_kernel_size=9 must be at most kernel_size=7"),
        ({"context_dim": 16}, "context_dim=16 must be at least 0 and less than dim=16"),
        ({"num_heads": 3}, "num_heads=3 must be a positive divisor of half of the 16 mixed channels"),
        ({"grid": 0}, "grid=0 must be at least 1"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_mixer("contmix", 16, **{"num_heads": 2, **kwargs})


@pytest.mark.parametrize("size", [5, 7, 13, 19])
def test_a_fused_convolution_is_the_branches_sum(size):
    layer = redrawn(DilatedReparam(3, size)).double().eval()
    fused = copy.deepcopy(layer)
    fused.fuse()
    fused.fuse()  # there is nothing left to merge
    x = torch.randn(2, 3, 9, 11, dtype=torch.float64)
    assert torch.allclose(fused(x), layer(x)) and torch.allclose(fused(x), F.conv2d(
        x, fused.conv.weight, fused.conv.bias, padding=size // 2, groups=3))  # fmt: skip
    assert fused.state_dict().keys() == DilatedReparam(3, size, fused=True).state_dict().keys()


def test_a_fused_model_is_the_same_and_loads_into_one_made_fused():
    model = micro()
    x = torch.randn(2, 3, 70, 90)
    expected = model(x)
    assert fuse(model) is model
    assert torch.allclose(model(x), expected, rtol=1e-4, atol=1e-4)
    other = micro(fused=True)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))


def test_the_dense_trunk_goes_on_from_the_normed_map():
    plain, dense = micro(), micro(output_norms=True, overview_neck=True)
    dense.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 64)
    raw, normed = (m.forward_intermediates(x, intermediates_only=True) for m in (plain, dense))
    norm = dense.stages[1].norm
    assert torch.allclose(normed[1], norm(raw[1]), atol=1e-5)
    expected = dense.output_norms["0"](raw[0].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert torch.allclose(normed[0], expected, atol=1e-5)
    dense.overview_neck.scale.weight.data.zero_()
    dense.overview_neck.scale.bias.data.zero_()
    bare = dense.forward_intermediates(x, intermediates_only=True)
    assert torch.equal(bare[2], normed[2]) and not torch.allclose(bare[3], normed[3])


def test_the_auxiliary_head_takes_part_in_training_where_asked_for():
    model = micro().train()
    x = torch.randn(4, 3, 64, 64)
    assert model(x).shape == (4, 5)
    model.set_aux_training()
    logits, auxiliary = model(x)
    assert logits.shape == auxiliary.shape == (4, 5)
    (logits.sum() + auxiliary.square().sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert model.eval()(x).shape == (4, 5)
    model.reset_classifier(3)
    assert model.head.aux.fc.out_features == 3
    assert micro(aux_head=False).head.aux is None


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"depths": (1, 1, 1)}, r"depths=\(1, 1, 1\) must have 4 entries"),
        ({"focus_depths": (1, 1, 1)}, r"focus_depths=\(1, 1, 1\) must have 2 entries"),
        ({"focus_depths": (0, 1)}, r"focus_depths=\(0, 1\) must all be at least 1"),
        ({"kernel_sizes": (5, 5, 6, 5)}, "kernel_size=6 must be one of"),
    ],
)
def test_wrong_arguments_of_the_host_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        micro(**kwargs)
