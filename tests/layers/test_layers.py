# SPDX-License-Identifier: Apache-2.0
"""Layers against the definitions of their papers, written as loops."""

import pytest
import torch
import torch.nn.functional as F

from visionattn.layers import (
    MIXERS,
    GlobalAttention,
    NeighborhoodAttention,
    PatchMerging,
    PatchStem,
    PositionEmbedding,
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


def test_merging_joins_rows_first_and_pads_odd_sides():
    layer = drawn(PatchMerging(6, 10))
    x = maps(5, 7, dim=6)
    out = layer(x)
    padded = F.pad(x, (0, 0, 0, 1, 0, 1))
    joined = torch.cat([padded[1, 4, 2], padded[1, 5, 2], padded[1, 4, 3], padded[1, 5, 3]])
    assert out.shape == (2, 3, 4, 10)
    assert torch.allclose(out[1, 2, 1], layer.reduction(layer.norm(joined)))


def test_patches_are_padded_at_the_bottom_and_right():
    layer = drawn(PatchStem(3, 8, patch_size=4))
    x = torch.randn(2, 3, 9, 6, dtype=torch.float64)
    assert torch.equal(layer(x), layer(F.pad(x, (0, 2, 0, 3))))


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
        ("global", dict(map_size=0), "must be positive"),
        ("windw", {}, "unknown mixer 'windw'; did you mean window"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_mixer(name, 12, **{"num_heads": 3, **kwargs})


@pytest.mark.parametrize("name", MIXERS)
def test_every_mixer_keeps_the_shape_and_trains(name):
    layer = create_mixer(name, 12, 3)
    x = torch.randn(2, 5, 9, 12, requires_grad=True)
    out = layer(x)
    out.square().sum().backward()
    assert out.shape == x.shape and all(p.grad is not None for p in layer.parameters())
