# SPDX-License-Identifier: Apache-2.0
"""Layers against the definitions of their papers, written as loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from visionattn.layers import (
    MIXERS,
    Block,
    ConditionalPosition,
    CosineWindowAttention,
    CrossShapedAttention,
    GatedConvolution,
    GlobalAttention,
    MapBatchNorm,
    NeighborhoodAttention,
    OverlapStem,
    PatchDownsample,
    PatchMerging,
    PatchStem,
    PooledAttention,
    PositionEmbedding,
    PostNormMerging,
    SpatialReductionAttention,
    WindowAttention,
    create_mixer,
    pad_to_multiple,
    pad_to_size,
)


def maps(height, width, dim=12, batch=2):
    return torch.randn(batch, height, width, dim, dtype=torch.float64)


def drawn(layer):
    layer = layer.double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def attend_pixel(layer, x, query, keys, offsets):
    """Output of one pixel of one image, key by key; `x` is the map after padding."""
    dim, heads = layer.dim, layer.num_heads
    head_dim = dim // heads
    q = layer.qkv(x[query])[:dim].view(heads, head_dim)
    k = torch.stack([layer.qkv(x[p])[dim : 2 * dim].view(heads, head_dim) for p in keys], 1)
    v = torch.stack([layer.qkv(x[p])[2 * dim :].view(heads, head_dim) for p in keys], 1)
    extent = [(n + 1) // 2 - 1 for n in layer.rpb.shape[1:]]
    bias = torch.stack([layer.rpb[:, dy + extent[0], dx + extent[1]] for dy, dx in offsets], 1)
    logits = (k @ (q * layer.scale)[..., None])[..., 0] + bias
    out = (logits.softmax(-1)[:, None] @ v).reshape(dim)
    return layer.proj(out)


@pytest.mark.parametrize(("height", "width"), [(7, 11), (4, 9), (2, 3)], ids=str)
def test_neighborhood_attention_sees_the_nearest_pixels_of_the_padded_map(height, width):
    layer = drawn(NeighborhoodAttention(12, 3, kernel_size=3, dilation=2))
    x = maps(height, width)
    padded = F.pad(x, (0, 0, 0, max(6 - width, 0), 0, max(6 - height, 0)))
    out = layer(x)
    assert out.shape == x.shape
    for query in [(0, 0), (height - 1, width - 1), (height // 2, 1)]:
        axes = []
        for i, length in zip(query, padded.shape[1:3], strict=True):
            members = list(range(i % 2, length, 2))
            first = min(max(members.index(i) - 1, 0), len(members) - 3)
            axes.append([(members[t], t - members.index(i)) for t in range(first, first + 3)])
        pairs = [(a, b) for a in axes[0] for b in axes[1]]
        keys, offsets = [(a[0], b[0]) for a, b in pairs], [(a[1], b[1]) for a, b in pairs]
        expected = attend_pixel(layer, padded[1], query, keys, offsets)
        assert torch.allclose(out[1][query], expected, atol=1e-10)


@pytest.mark.parametrize(("height", "width", "shift"), [(7, 10, 0), (7, 10, 2), (3, 10, 0)], ids=str)
def test_window_attention_stays_inside_windows_of_the_padded_map(height, width, shift):
    layer = drawn(WindowAttention(12, 3, window_size=4, shift=shift))
    x = maps(height, width)
    rows, columns = -height % 4 + height, -width % 4 + width
    padded = F.pad(x, (0, 0, 0, columns - width, 0, rows - height))
    out = layer(x)

    def window(p):  # rolled position // 4, and the region that the roll must not join
        rolled = [(c - shift) % n for c, n in zip(p, (rows, columns), strict=True)]
        region = [c >= n - shift for c, n in zip(rolled, (rows, columns), strict=True)]
        return [c // 4 for c in rolled], region if shift else None

    for query in [(0, 0), (height - 1, width - 1), (2, 5)]:
        keys = [(a, b) for a in range(rows) for b in range(columns) if window((a, b)) == window(query)]
        rolled = [[(c - shift) % n for c, n in zip(p, (rows, columns), strict=True)] for p in (query, *keys)]
        offsets = [(a - rolled[0][0], b - rolled[0][1]) for a, b in rolled[1:]]
        expected = attend_pixel(layer, padded[1], query, keys, offsets)
        assert torch.allclose(out[1][query], expected, atol=1e-10)


@pytest.mark.parametrize(("pretrained", "qkv_bias"), [(0, True), (6, True), (3, False)], ids=str)
def test_cosine_attention_scales_clamps_and_biases_as_defined(pretrained, qkv_bias):
    layer = drawn(CosineWindowAttention(12, 3, window_size=4, pretrained_window=pretrained, qkv_bias=qkv_bias))
    with torch.no_grad():
        layer.logit_scale.copy_(torch.tensor([0.3, 2.0, 5.0]))  # the last one is clamped at log(100)
    x = maps(7, 10)
    out, padded = layer(x), F.pad(x, (0, 0, 0, 2, 0, 1))
    query = (5, 8)
    keys = [(a, b) for a in range(4, 8) for b in range(8, 12)]
    bias = torch.cat([layer.q_bias, torch.zeros(12), layer.v_bias]) if qkv_bias else torch.zeros(36)
    project = lambda p: (layer.qkv(padded[1][p]) + bias).view(3, 3, 4)  # noqa: E731
    q = project(query)[0]
    expected = torch.empty(3, 4, dtype=torch.float64)
    for head in range(3):
        factor, logits = min(layer.logit_scale[head].exp(), torch.tensor(100.0)), []
        for key in keys:
            k = project(key)[1, head]
            cosine = q[head] @ k / q[head].norm() / k.norm() if k.any() else torch.tensor(0.0)
            unit = [8.0 * (a - b) / ((pretrained or 4) - 1) for a, b in zip(query, key, strict=True)]
            log = [math.copysign(math.log2(abs(u) + 1) / 3, u) for u in unit]
            position = layer.cpb_mlp(torch.tensor(log, dtype=torch.float64))[head]
            logits.append(cosine * factor + 16 * position.sigmoid())
        expected[head] = torch.stack(logits).softmax(0) @ torch.stack([project(key)[2, head] for key in keys])
    # Offsets are taken in float32, whatever the weights are.
    assert torch.allclose(out[1][query], layer.proj(expected.flatten()), atol=1e-6)


def test_post_norm_blocks_start_as_identities_and_norm_what_a_branch_returns():
    block = Block(12, torch.nn.Linear(12, 12), post_norm=True).double()
    x = maps(4, 5)
    assert torch.equal(block(x), x)
    drawn(block)
    half = x + block.norm1(block.attn(x))
    assert torch.allclose(block(x), half + block.norm2(block.mlp(half)))


def test_a_map_that_one_window_covers_is_shifted_only_if_asked():
    plain = drawn(WindowAttention(12, 3, window_size=5, shift=2))
    dense = WindowAttention(12, 3, window_size=5, shift=2, shift_small_maps=True).double()
    dense.load_state_dict(plain.state_dict())
    unshifted = WindowAttention(12, 3, window_size=5).double()
    unshifted.load_state_dict(plain.state_dict())
    small, large = maps(5, 9), maps(6, 9)
    assert torch.equal(plain(small), unshifted(small)) and not torch.allclose(dense(small), plain(small))
    assert torch.equal(dense(large), plain(large))


@pytest.mark.parametrize("size", [(5, 8), (3, 3)], ids=str)
def test_global_attention_sees_every_pixel_and_resizes_its_table(size):
    layer = drawn(GlobalAttention(12, 3, map_size=(5, 8)))
    x = maps(*size)
    out = layer(x)
    target = tuple(2 * n - 1 for n in size)
    with torch.no_grad():
        table = F.interpolate(layer.rpb[None], size=target, mode="bicubic", align_corners=False)[0]
    same = GlobalAttention(12, 3, map_size=size).double()
    same.load_state_dict({**layer.state_dict(), "rpb": table})
    keys = [(a, b) for a in range(size[0]) for b in range(size[1])]
    query = (1, 2)
    expected = attend_pixel(same, x[1], query, keys, [(a - 1, b - 2) for a, b in keys])
    assert torch.allclose(out[1][query], expected, atol=1e-10)


@pytest.mark.parametrize(("size", "reduction"), [((7, 9), 3), ((2, 7), 4), ((3, 2), 1)], ids=str)
def test_reduced_attention_sees_whole_patches_and_pads_small_maps_to_one(size, reduction):
    layer = drawn(SpatialReductionAttention(12, 3, reduction=reduction))
    x = maps(*size)
    padded = F.pad(x, (0, 0, 0, max(reduction - size[1], 0), 0, max(reduction - size[0], 0)))[1]
    tokens = []
    for i in range(padded.shape[0] // reduction):
        for j in range(padded.shape[1] // reduction):
            patch = padded[i * reduction : (i + 1) * reduction, j * reduction : (j + 1) * reduction]
            if reduction == 1:
                tokens.append(patch[0, 0])
            else:
                tokens.append(layer.norm(torch.einsum("abc,ocab->o", patch, layer.sr.weight) + layer.sr.bias))
    k, v = layer.kv(torch.stack(tokens)).view(-1, 2, 3, 4).unbind(1)
    q = layer.q(x[1, 1, 1]).view(3, 4)
    weights = torch.einsum("hd,nhd->hn", q, k).mul(4**-0.5).softmax(-1)
    expected = layer.proj(torch.einsum("hn,nhd->hd", weights, v).flatten())
    assert torch.allclose(layer(x)[1, 1, 1], expected, atol=1e-10)


@pytest.mark.parametrize("size", [(7, 9), (3, 4), (16, 5)], ids=str)
def test_pooled_attention_sees_adaptive_averages(size):
    layer = drawn(PooledAttention(12, 3, pool_size=4))
    x = maps(*size)
    averages = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), 4)
    tokens = F.gelu(layer.norm(layer.sr(averages).flatten(2).transpose(1, 2)))
    assert torch.allclose(layer.reduce(x), tokens, atol=1e-12)
    q = layer.q(x).view(2, -1, 3, 4).transpose(1, 2)
    k, v = (t.transpose(1, 2) for t in layer.kv(tokens).view(2, 16, 2, 3, 4).unbind(2))
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    assert torch.allclose(layer(x), layer.proj(expected.reshape(x.shape)))


@pytest.mark.parametrize(("size", "width"), [((6, 9), 3), ((5, 7), 2), ((4, 5), None)], ids=str)
def test_cross_shaped_attention_sees_columns_with_half_of_the_heads_and_rows_with_the_others(size, width):
    layer = drawn(CrossShapedAttention(16, 4, stripe_width=width))
    x = maps(*size, dim=16)
    side = width or 1
    padded = F.pad(x, (0, 0, 0, -size[1] % side, 0, -size[0] % side))[1]
    rows, columns = padded.shape[:2]
    q, k, v = layer.qkv(padded).view(rows, columns, 3, 4, 4).unbind(2)
    query = (3, 2)
    out = torch.empty(4, 4, dtype=torch.float64)
    for head in range(4):
        branch = head // 2 if width else 0
        same_stripe = lambda p, axis=1 - branch: width is None or p[axis] // side == query[axis] // side  # noqa: E731
        keys = [(a, b) for a in range(rows) for b in range(columns) if same_stripe((a, b))]
        logits = torch.stack([q[query][head] @ k[key][head] for key in keys]) / 2
        out[head] = logits.softmax(0) @ torch.stack([v[key][head] for key in keys])
        conv, first = layer.lepe[branch], 4 * (head - 2 * branch)
        out[head] += conv.bias[first : first + 4]
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                if (query[0] + dy, query[1] + dx) in keys:
                    tap = conv.weight[first : first + 4, 0, dy + 1, dx + 1]
                    out[head] += tap * v[query[0] + dy, query[1] + dx][head]
    assert torch.allclose(layer(x)[1][query], layer.proj(out.flatten()), atol=1e-10)


@pytest.mark.parametrize("conv_ratio", [0.5, 2.0])
def test_gated_convolution_gates_and_convolves_a_part_of_the_channels(conv_ratio):
    layer, x = drawn(GatedConvolution(12, 1, 2.0, conv_ratio, 3)), maps(4, 5, batch=1)
    convolved = int(12 * conv_ratio)
    gate, rest = F.linear(x, layer.fc1.weight, layer.fc1.bias).split(24, -1)
    expected = rest.clone()
    for channel in range(convolved):
        plane = F.pad(rest[0, :, :, 24 - convolved + channel], (1, 1, 1, 1))
        for i, j in [(i, j) for i in range(4) for j in range(5)]:
            value = (plane[i : i + 3, j : j + 3] * layer.conv.weight[channel, 0]).sum() + layer.conv.bias[channel]
            expected[0, i, j, 24 - convolved + channel] = value
    expected = F.linear(F.gelu(gate) * expected, layer.fc2.weight, layer.fc2.bias)
    assert torch.allclose(layer(x), expected)


def test_map_batch_norm_norms_channels_and_differentiates_maps_of_one_image():
    norm = drawn(MapBatchNorm(12))
    x = maps(1, 6, batch=1).requires_grad_()  # tokens as a map: the layout that PyTorch's backward gets wrong
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2), unbiased=False)
    expected = (x - mean) / (var + norm.bn.eps).sqrt() * norm.bn.weight + norm.bn.bias
    cotangent = torch.randn_like(x)
    out = norm(x)
    (grad,), (wanted,) = (torch.autograd.grad(y, x, cotangent) for y in (out, expected))
    assert torch.allclose(out, expected) and torch.allclose(grad, wanted)


def test_overlapping_stems_count_patches_upwards():
    image = torch.randn(2, 3, 9, 18, dtype=torch.float64)
    centred, shifted = drawn(OverlapStem(3, 8)), drawn(OverlapStem(3, 8, padding=2))
    expected = F.conv2d(F.pad(image, (3, 3, 3, 3)), centred.proj.weight, centred.proj.bias, stride=4)
    assert torch.allclose(centred(image), centred.norm(expected.permute(0, 2, 3, 1)))
    assert shifted(image).shape == (2, 3, 5, 8)
    expected = shifted.proj.bias + torch.einsum("cyx,ocyx->o", image[0, :, 2:9, 2:9], shifted.proj.weight)
    assert torch.allclose(shifted(image)[0, 1, 1], shifted.norm(expected))


@pytest.mark.parametrize(("size", "hidden"), [((5, 7), True), ((5, 8), False)], ids=str)
def test_padding_is_hidden_where_both_axes_are_padded(size, hidden):
    layer = drawn(WindowAttention(12, 3, window_size=4, relative_bias=False, mask_two_sided_padding=True))
    seen = drawn(WindowAttention(12, 3, window_size=4, relative_bias=False))
    seen.load_state_dict(layer.state_dict())
    x = maps(*size)
    assert torch.allclose(layer(x), seen(x)) != hidden
    alone = layer.project_in(x[1:, 4:, 4:7])  # the last window, without what fills it up
    expected = F.scaled_dot_product_attention(*(t.flatten(1, 2).transpose(1, 2) for t in alone), scale=layer.scale)
    expected = layer.project_out(expected.transpose(1, 2).unflatten(1, (1, 3)))
    assert torch.allclose(layer(x)[1:, 4:, 4:7], expected) == hidden


def test_conditional_positions_are_a_convolution_of_the_map():
    layer = drawn(ConditionalPosition(6))
    x = maps(5, 4, dim=6)
    window = F.pad(x, (0, 0, 1, 1, 1, 1))[1, 4:7, 1:4]
    expected = x[1, 4, 1] + torch.einsum("abc,cab->c", window, layer.conv.weight[:, 0]) + layer.conv.bias
    assert torch.allclose(layer(x)[1, 4, 1], expected)


def test_merging_joins_rows_first_and_pads_odd_sides():
    layer = drawn(PatchMerging(6, 10))
    x = maps(5, 7, dim=6)
    out = layer(x)
    padded = F.pad(x, (0, 0, 0, 1, 0, 1))
    joined = torch.cat([padded[1, 4, 2], padded[1, 5, 2], padded[1, 4, 3], padded[1, 5, 3]])
    assert out.shape == (2, 3, 4, 10)
    assert torch.allclose(out[1, 2, 1], layer.reduction(layer.norm(joined)))


def test_post_norm_merging_norms_the_result():
    layer = drawn(PostNormMerging(6, 10))
    x = maps(5, 7, dim=6)
    assert torch.allclose(layer(x), layer.norm(layer.reduction(PatchMerging.join(x))))


def test_patches_are_padded_at_the_bottom_and_right():
    layer = drawn(PatchStem(3, 8, patch_size=4))
    x = torch.randn(2, 3, 9, 6, dtype=torch.float64)
    assert torch.equal(layer(x), layer(F.pad(x, (0, 2, 0, 3))))


def test_ragged_patches_are_dropped_only_if_asked_and_never_the_last():
    layer = drawn(PatchStem(3, 8, patch_size=4, drop_ragged=True))
    x = torch.randn(2, 3, 9, 14, dtype=torch.float64)
    assert torch.equal(layer(x), layer(x[:, :, :8, :12]))
    assert torch.equal(layer(x[:, :, :2]), layer(F.pad(x[:, :, :2], (0, 0, 0, 2))))
    down, small = drawn(PatchDownsample(6, 10)), maps(5, 1, dim=6)
    assert torch.equal(down(small), down(F.pad(small[:, :4], (0, 0, 0, 1))))


def test_positions_are_resized_to_the_map():
    layer = drawn(PositionEmbedding(6, (4, 5)))
    same, larger = maps(4, 5, dim=6), maps(7, 9, dim=6)
    assert torch.equal(layer(same), same + layer.table.permute(1, 2, 0))
    table = F.interpolate(layer.table[None], size=(7, 9), mode="bicubic", align_corners=False)[0]
    assert torch.allclose(layer(larger), larger + table.permute(1, 2, 0))


def test_padding_copies_nothing_where_nothing_is_missing():
    x = maps(6, 8)
    assert pad_to_multiple(x, 2) is x and pad_to_size(x, 5, 8) is x
    assert pad_to_multiple(x, 4).shape == (2, 8, 8, 12) and pad_to_size(x, 3, 11).shape == (2, 6, 11, 12)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("neighborhood", dict(num_heads=5), "num_heads=5 must be a positive divisor of dim=12"),
        ("neighborhood", dict(kernel_size=0), "must be positive"),
        ("neighborhood", dict(dilation=0), "dilation=0"),
        ("window", dict(window_size=4, shift=4), "shift=4"),
        ("window", dict(window_size=0), "window_size=.* must be positive"),
        ("cosine_window", dict(pretrained_window=-1), "pretrained_window=-1 must be positive, or 0"),
        ("global", dict(map_size=0), "must be positive"),
        ("spatial_reduction", dict(reduction=0), "reduction=0 must be at least 1"),
        ("cross_shaped", {}, "num_heads=3 must be even"),
        ("cross_shaped", dict(stripe_width=0), "stripe_width=0 must be at least 1, or None"),
        ("pooled", dict(pool_size=0), "pool_size=0 must be at least 1"),
        ("spatial_reduction", dict(num_heads=5), "num_heads=5 must be a positive divisor of dim=12"),
        ("bilevel", dict(topk=50), "topk=50 must be at least 1 and at most the 49 regions"),
        ("bilevel", dict(num_regions=0), "num_regions=0 must be at least 1"),
        ("bilevel", dict(lepe_kernel=4), "lepe_kernel=4 must be odd"),
        ("bilevel", dict(routing="sof"), "routing='sof' must be"),
        ("bilevel", dict(kv_pool="mean"), "kv_pool='mean' must be"),
        ("bilevel", dict(qk_dim=10), "num_heads=3 must be a positive divisor of dim=12 and qk_dim=10"),
        ("separable", dict(kernel_size=2), "kernel_size=2 must be odd"),
        ("gated_cnn", dict(conv_ratio=3.0), "conv_ratio=3.0 makes 36 of 12 channels; it must make 1 to 32"),
        ("gated_cnn", dict(kernel_size=4), "kernel_size=4 must be odd"),
        ("windw", {}, "unknown mixer 'windw'; did you mean window"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_mixer(name, 12, **{"num_heads": 3, **kwargs})


@pytest.mark.parametrize("name", MIXERS)
def test_every_mixer_keeps_the_shape_and_trains(name):
    layer = create_mixer(name, 16, 2)
    x = torch.randn(2, 5, 9, 16, requires_grad=True)
    out = layer(x)
    out.square().sum().backward()
    assert out.shape == x.shape and all(p.grad is not None for p in layer.parameters())
