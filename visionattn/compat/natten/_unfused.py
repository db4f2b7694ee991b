# SPDX-License-Identifier: Apache-2.0
"""Query-key products and weighted sums of values as two ops, with the weights of each neighbourhood in between.

A tile of queries meets the union of its windows in one matrix product; each query's own keys are picked out of it, or
put into it. `qk`, `av` and `spread` are bilinear, and each one's gradients are the two others: derivatives of any order
keep nothing but the operands and indices. Tensors are (B, heads, N, ·) over the N positions of a flattened map.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from visionattn.kernels import tiling
from visionattn.kernels.local_torch import wide_dtype
from visionattn.kernels.pattern import AxisPattern, AxisTiles, LocalPattern


class Tiles(NamedTuple):
    """A map cut into n tiles of T queries and the S keys that their windows of K keys lie in.

    `query` (n, T) and `key` (n, S) are rows of the flattened map, `query_ok` (n, T) tells which queries exist (None:
    all), `slot` (n, T, K) where among its tile's keys each window's are, `home` (N,) where each position is among all
    tiles' queries.
    """

    query: Tensor
    query_ok: Tensor | None
    key: Tensor
    slot: Tensor
    home: Tensor


class Pairs(NamedTuple):
    """`entry` (N, K): place of each query and key in a flattened bias table; `hidden` (N, K): keys after the query."""

    entry: Tensor
    hidden: Tensor | None


def _slots(axis: AxisTiles, kernel_size: int) -> Tensor:
    """Where among its tile's keys each window's are, along one axis: (tiles, T, kernel_size)."""
    window = torch.arange(kernel_size, device=axis.query.device)
    if axis.allowed is None:
        return window.expand(*axis.query.shape, -1)
    return axis.allowed.to(torch.uint8).argmax(-1, keepdim=True) + window  # the first key is never hidden


def cut(pattern: LocalPattern, size: Sequence[int], head_dim: int, device: torch.device) -> tuple[Tiles, Pairs]:
    """The tiles of a map and what their pairs of queries and keys are to each other."""
    axes = tiling.cut_axes(pattern, size, size, head_dim, False, device)
    patterns: tuple[AxisPattern, ...] = pattern.axes(len(size))
    slots = [_slots(axis, p.kernel_size) for axis, p in zip(axes, patterns, strict=True)]
    relations = [axis.relation.gather(-1, slot) for axis, slot in zip(axes, slots, strict=True)]
    home = tiling.home_rows(axes)

    def row_major(parts: Sequence[Tensor], sides: Sequence[int]) -> Tensor:
        return tiling.outer([part * math.prod(sides[i + 1 :]) for i, part in enumerate(parts)], torch.add)

    query, query_ok = tiling.tile_rows(axes, "query", size)
    key, _ = tiling.tile_rows(axes, "key", size)
    tiles = Tiles(query, query_ok, key, row_major(slots, [axis.key.shape[1] for axis in axes]), home)
    entry = row_major(relations, [2 * p.kernel_size - 1 for p in patterns])
    hidden = None
    if any(p.causal for p in patterns):
        later = [(r >= p.kernel_size) & p.causal for r, p in zip(relations, patterns, strict=True)]
        hidden = tiling.outer(later, torch.logical_or).flatten(0, 1)[home]
    return tiles, Pairs(entry.flatten(0, 1)[home], hidden)


def qk(query: Tensor, key: Tensor, tiles: Tiles) -> Tensor:
    """Products (B, heads, N, K) of each query with its keys."""
    return _qk(query, key, tiles) if torch.compiler.is_compiling() else _QK.apply(query, key, *tiles)


def av(attn: Tensor, value: Tensor, tiles: Tiles) -> Tensor:
    """Sum (B, heads, N, D) of each query's values, weighted by attn (B, heads, N, K)."""
    return _av(attn, value, tiles) if torch.compiler.is_compiling() else _AV.apply(attn, value, *tiles)


def spread(attn: Tensor, query: Tensor, tiles: Tiles) -> Tensor:
    """Sum (B, heads, N, D) over the queries that see a key, weighted by attn (B, heads, N, K)."""
    return _Spread.apply(attn, query, *tiles)


def _parts(x: Tensor, tiles: Tiles) -> Iterator[tuple[slice, Tensor]]:
    """Some images at a time, so that the products of their tiles fit a core's cache, and `slot` for each of them."""
    batch, heads = x.shape[:2]
    at_once = batch
    if not torch.compiler.is_compiling():
        at_once = max(1, tiling.CHUNK // (heads * tiles.query.numel() * tiles.key.shape[1]))
    for start in range(0, batch, at_once):
        part = slice(start, min(start + at_once, batch))
        yield part, tiles.slot.expand(x[part].shape[0], heads, -1, -1, -1)


def _read(x: Tensor, rows: Tensor) -> Tensor:
    return x.index_select(2, rows.flatten()).unflatten(2, rows.shape)  # (B, heads, n, T or S, ·)


def _write(x: Tensor, tiles: Tiles) -> Tensor:
    return x.flatten(2, 3).index_select(2, tiles.home)  # (B, heads, N, ·)


def _dense(attn: Tensor, slot: Tensor, keys: int) -> Tensor:
    return attn.new_zeros(*attn.shape[:-1], keys).scatter(-1, slot, attn)  # (B, heads, n, T, S)


def _qk(query: Tensor, key: Tensor, tiles: Tiles) -> Tensor:
    out = query.new_empty(*query.shape[:-1], tiles.slot.shape[-1])
    for part, slot in _parts(query, tiles):
        products = _read(query[part], tiles.query) @ _read(key[part], tiles.key).transpose(-2, -1)
        out[part] = _write(products.gather(-1, slot), tiles)
    return out


def _av(attn: Tensor, value: Tensor, tiles: Tiles) -> Tensor:
    out = torch.empty_like(value)
    for part, slot in _parts(value, tiles):
        weights = _dense(_read(attn[part], tiles.query), slot, tiles.key.shape[1])
        out[part] = _write(weights @ _read(value[part], tiles.key), tiles)
    return out


def _spread(attn: Tensor, query: Tensor, tiles: Tiles) -> Tensor:
    out = query.new_zeros(query.shape, dtype=wide_dtype(query.dtype))
    for part, slot in _parts(query, tiles):
        weights = _read(attn[part], tiles.query)
        if tiles.query_ok is not None:
            weights = weights * tiles.query_ok.unsqueeze(-1)
        sums = _dense(weights, slot, tiles.key.shape[1]).transpose(-2, -1) @ _read(query[part], tiles.query)
        out[part].index_add_(2, tiles.key.flatten(), sums.flatten(2, 3).to(out.dtype))
    return out.to(query.dtype)


class _Bilinear(torch.autograd.Function):
    """Keeps the two operands, and the tiles."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)


class _QK(_Bilinear):
    @staticmethod
    def forward(query: Tensor, key: Tensor, *tiles: Any) -> Tensor:
        return _qk(query, key, Tiles(*tiles))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, *rest = ctx.saved_tensors
        (first, second, *_), tiles = ctx.needs_input_grad, Tiles(*rest)
        return av(grad, key, tiles) if first else None, spread(grad, query, tiles) if second else None, *(None,) * 5


class _AV(_Bilinear):
    @staticmethod
    def forward(attn: Tensor, value: Tensor, *tiles: Any) -> Tensor:
        return _av(attn, value, Tiles(*tiles))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        attn, value, *rest = ctx.saved_tensors
        (first, second, *_), tiles = ctx.needs_input_grad, Tiles(*rest)
        return qk(grad, value, tiles) if first else None, spread(attn, grad, tiles) if second else None, *(None,) * 5


class _Spread(_Bilinear):
    @staticmethod
    def forward(attn: Tensor, query: Tensor, *tiles: Any) -> Tensor:
        return _spread(attn, query, Tiles(*tiles))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        attn, query, *rest = ctx.saved_tensors
        (first, second, *_), tiles = ctx.needs_input_grad, Tiles(*rest)
        return qk(query, grad, tiles) if first else None, av(attn, grad, tiles) if second else None, *(None,) * 5


# --- whole maps, heads first ------------------------------------------------------------------------------------


def neighbourhood_logits(
    query: Tensor, key: Tensor, pattern: LocalPattern, table: Tensor | None, additional_keys: Tensor | None
) -> Tensor:
    """Logits (B, heads, *spatial, K, then one for each additional key) of checked tensors (B, heads, *spatial, D)."""
    size = query.shape[2:-1]
    tiles, pairs = cut(pattern, size, query.shape[-1], query.device)
    logits = qk(query.flatten(2, -2), key.flatten(2, -2), tiles)
    if table is not None:
        logits = logits + table.flatten(1).to(logits.dtype)[:, pairs.entry]
    if pairs.hidden is not None:
        logits = logits.masked_fill(pairs.hidden, -math.inf)
    logits = logits.unflatten(2, size)
    if additional_keys is None:
        return logits
    far = query.flatten(2, -2) @ additional_keys.transpose(-2, -1)
    return torch.cat([logits, far.unflatten(2, size)], -1)


def neighbourhood_sum(attn: Tensor, value: Tensor, pattern: LocalPattern, additional_values: Tensor | None) -> Tensor:
    """Weighted sum (B, heads, *spatial, D) of checked values; attn is laid out as `neighbourhood_logits` gives it."""
    size = value.shape[2:-1]
    tiles, pairs = cut(pattern, size, value.shape[-1], value.device)
    count = tiles.slot.shape[-1]
    weights = attn.flatten(2, -2)
    near = weights[..., :count]
    if pairs.hidden is not None:
        near = near.masked_fill(pairs.hidden, 0.0)
    out = av(near, value.flatten(2, -2), tiles)
    if additional_values is not None:
        out = out + weights[..., count:] @ additional_values
    return out.unflatten(2, size)
