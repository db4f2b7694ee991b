# SPDX-License-Identifier: Apache-2.0
"""Partial convolution with its gates and attention: against loops written from the definitions."""

import math

import pytest
import torch

from visionattn.layers import DistanceAttention, NestedBlock, create_mixer
from visionattn.layers.distance import distance_buckets
from visionattn.layers.partial import DynamicPartialConvolution, PartialSpatialGate, StatisticsGate


def redrawn(layer):
    """Every parameter and statistic random."""
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    for name, buffer in layer.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    return layer.double().eval()


def bucket(dy, dx):
    """Bucket of an offset: the rounded distance, from 20 pixels on its logarithm."""
    distance = round(math.hypot(dy, dx))
    if distance <= 20:
        return distance
    return min(40, round(20 + 20 * math.log(distance / 20) / math.log(8)))


def test_buckets_are_those_of_the_definition():
    table = distance_buckets(9, 190, torch.device("cpu"))
    assert table.shape == (17, 379) and table.max() == 40
    for row in range(17):
        for column in range(0, 379, 3):
            assert table[row, column] == bucket(row - 8, column - 189)


def test_distance_attention_is_its_definition():
    layer = redrawn(DistanceAttention(6, 2))
    x = torch.randn(2, 3, 24, 6, dtype=torch.float64)
    q, k, v = layer.qkv(x).reshape(2, 72, 3, 2, 3).permute(2, 0, 3, 1, 4)
    out = torch.zeros_like(v)
    for b, h, i in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(0, 72)).tolist():
        bias = [layer.rpb[h, 40 + bucket(i // 24 - j // 24, i % 24 - j % 24)] for j in range(72)]
        weights = (k[b, h] @ q[b, h, i] * 3**-0.5 + torch.stack(bias)).softmax(0)
        out[b, h, i] = weights @ v[b, h]
    expected = layer.proj(out.transpose(1, 2).reshape(x.shape))
    assert torch.allclose(layer(x), expected, rtol=1e-10, atol=1e-10)


def test_weights_are_dropped_in_training_alone():
    layer = redrawn(DistanceAttention(8, 2, attn_drop=0.5))
    x = torch.randn(1, 5, 4, 8, dtype=torch.float64)
    expected = layer(x)
    assert torch.equal(layer(x), expected)
    assert not torch.allclose(layer.train()(x), expected)
    layer.attn_drop, layer.proj_drop.p = 1e-12, 0.0  # the same path, nothing dropped
    assert torch.allclose(layer(x), expected, rtol=1e-10, atol=1e-10)


def test_the_gate_reads_mean_and_unbiased_deviation_of_all_channels():
    gate = redrawn(StatisticsGate(5))
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    mean = [[x[b, :, :, c].sum() / 12 for c in range(5)] for b in range(2)]
    std = [[((x[b, :, :, c] - mean[b][c]) ** 2).sum().div(11).sqrt() for c in range(5)] for b in range(2)]
    weight, norm = gate.fc.weight.unflatten(1, (5, 2)), gate.bn
    for b in range(2):
        for c in range(5):
            z = sum(weight[c, i, 0] * mean[b][i] + weight[c, i, 1] * std[b][i] for i in range(5))
            z = (z - norm.running_mean[c]) / (norm.running_var[c] + 1e-5).sqrt() * norm.weight[c] + norm.bias[c]
            share = (z + 3).clamp(0, 6) / 6
            assert torch.allclose(gate(x)[b, :, :, c], x[b, :, :, c] * share, rtol=1e-10, atol=1e-12)


def test_a_single_pixel_has_no_deviation_and_a_gradient():
    layer = redrawn(create_mixer("partial_channel", 8, 1))
    x = torch.randn(3, 1, 1, 8, dtype=torch.float64, requires_grad=True)
    layer(x).square().sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("name", ["partial_conv", "partial_channel", "partial_self"])
def test_the_first_channels_are_convolved_and_see_no_others(name):
    layer = redrawn(create_mixer(name, 8, 2, divisor=4))
    x = torch.randn(2, 5, 4, 8, dtype=torch.float64)
    out = layer(x)
    first = layer.conv(x[..., :2].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert torch.equal(out[..., :2], first)
    assert torch.equal(out[..., 2:], x[..., 2:]) == (name == "partial_conv")
    other = x.clone()
    other[..., :2] = torch.randn_like(first)
    assert torch.allclose(layer(other)[..., 2:], out[..., 2:])


@pytest.mark.parametrize("name", ["distance", "partial_channel", "partial_self"])
def test_gradients_are_right(name):
    layer = redrawn(create_mixer(name, 8, 2))
    x = torch.randn(1, 3, 2, 8, dtype=torch.float64, requires_grad=True)
    # The backward of PyTorch's hard sigmoid has a constant of float32.
    torch.autograd.gradcheck(layer, x, atol=1e-5)


@pytest.mark.parametrize("name", ["distance", "partial_conv", "partial_channel", "partial_self"])
def test_half_precision_is_close(name):
    layer = redrawn(create_mixer(name, 16, 2)).float()
    x = torch.randn(2, 7, 5, 16)
    exact = layer(x)
    rounded = layer.bfloat16()(x.bfloat16())
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() <= 0.05 * exact.norm()


def test_the_mlps_gate_weighs_pixels_and_mixes_channels():
    gate = redrawn(PartialSpatialGate(5))
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    a, b = x[..., :3], x[..., 3:]
    share = ((a * gate.gate.weight[0]).sum(-1, keepdim=True) + 3).clamp(0, 6) / 6
    expected = torch.cat([gate.norm1(a * share), gate.norm2(b) @ gate.fc.weight.T], -1)
    assert torch.allclose(gate(x), expected)


def test_the_nested_block_has_one_skip_or_two():
    x = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    for skip in (False, True):
        block = redrawn(NestedBlock(8, create_mixer("partial_conv", 8, 1), 2.0, 0.1, mlp="partial", mixer_skip=skip))
        mixed = block.attn(x) + (x if skip else 0)
        expected = (mixed if skip else x) + block.scale.gamma * block.mlp(block.norm(mixed))
        assert torch.allclose(block(x), expected)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("partial_conv", {"divisor": 1}, "divisor=1 must be at least 2 and at most dim=12"),
        ("partial_conv", {"kernel_size": 4}, "kernel_size=4 must be odd and positive"),
        ("partial_self", {"num_heads": 4}, "num_heads=4 must be a positive divisor of dim=9"),
        ("distance", {"attn_drop": 1.0}, "attn_drop=1.0 must be at least 0 and less than 1"),
    ],
)
def test_bad_arguments_are_named(name, args, message):
    with pytest.raises(ValueError, match=message):
        create_mixer(name, 12, **{"num_heads": 3, **args})


def test_options_that_the_nested_block_lacks_are_refused():
    with pytest.raises(ValueError, match="post_norm=True is no option"):
        NestedBlock(8, create_mixer("partial_conv", 8, 1), post_norm=True)


def test_training_chooses_how_many_channels_are_convolved():
    layer = redrawn(DynamicPartialConvolution(8)).train()
    x = torch.randn(2, 5, 4, 8, dtype=torch.float64)
    with torch.no_grad():
        layer.gate.copy_(torch.tensor([0.3, -0.2, 1.5]))
    ones, eye = torch.ones(2, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    mask = torch.kron(torch.kron(ones, eye), ones)
    weight = layer.conv.weight * mask[:, :, None, None]
    expected = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), weight, padding=1).permute(0, 2, 3, 1)
    out = layer(x)
    assert torch.allclose(out, expected, rtol=1e-12) and layer.convolved == 4
    out.square().sum().backward()
    assert (layer.gate.grad[:2] != 0).all() and layer.gate.grad[2] == 0
    kept = layer.eval()(x)
    corner = torch.nn.functional.conv2d(x[..., :4].permute(0, 3, 1, 2), layer.conv.weight[:4, :4], padding=1)
    assert torch.equal(kept[..., 4:], x[..., 4:]) and torch.allclose(kept[..., :4], corner.permute(0, 2, 3, 1))
    with pytest.raises(ValueError, match="dim=12 must be a power of 2"):
        DynamicPartialConvolution(12)
