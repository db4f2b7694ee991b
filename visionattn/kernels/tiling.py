# SPDX-License-Identifier: Apache-2.0
"""A map cut into tiles: how large they are, where their queries and keys lie, and the bias of each pair."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.kernels.pattern import AxisPattern, AxisTiles, LocalPattern, is_symbolic

CHUNK = 1 << 19  # numbers in a chunk's largest tensor: 2 MiB in float32, so that its passes stay in a core's cache


def outer(parts: Sequence[Tensor], combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Combine one (A_axis, B_axis, ...) tensor an axis into (A, B, ...): all the A merged, all the B, row-major."""
    rank, dims = len(parts), parts[0].ndim
    spread = []
    for axis, part in enumerate(parts):
        shape = [1] * (rank * dims)
        shape[axis::rank] = part.shape
        spread.append(part.reshape(shape))
    merged = reduce(combine, spread)
    for dim in range(dims):
        merged = merged.flatten(dim, dim + rank - 1) if rank > 1 else merged
    return merged


def outer_mask(masks: Sequence[Tensor | None], likes: Sequence[Tensor]) -> Tensor | None:
    """`outer` of the axes' masks; None is a mask of all True in the shape of its `like`."""
    if all(mask is None for mask in masks):
        return None
    every = [torch.ones_like(like, dtype=torch.bool) if mask is None else mask
             for mask, like in zip(masks, likes, strict=True)]  # fmt: skip
    return outer(every, torch.logical_and)


class BiasIndex(NamedTuple):
    """Entry of a flattened bias table, of `size` entries, for each query and key of a tile: (n, T, S).

    Pairs that don't see each other (`hides`: there are some) point one past the table. n is 1 where all tiles are
    alike.
    """

    index: Tensor
    size: int
    hides: bool

    @classmethod
    def of(cls, axes: Sequence[AxisTiles], pattern: LocalPattern) -> BiasIndex:
        """The index for all combinations of the axes' tiles."""
        table = [2 * axis.kernel_size - 1 for axis in pattern.axes(len(axes))]
        relations, masks = [axis.relation for axis in axes], [axis.allowed for axis in axes]
        hides = any(mask is not None for mask in masks)
        if hides or any(is_symbolic(r.shape[0]) or r.shape[0] > 1 for r in relations):
            relations = [r.expand(axis.query.shape[0], -1, -1) for r, axis in zip(relations, axes, strict=True)]
        index = outer([r * math.prod(table[axis + 1 :]) for axis, r in enumerate(relations)], torch.add)
        mask = outer_mask(masks, relations)
        size = math.prod(table)
        return cls(index if mask is None else torch.where(mask, index, size), size, hides)

    def bias(self, table: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Bias and mask (n, heads or 1, T, S) from an `extended` table; None where there is nothing to add."""
        if table is not None:
            return table.index_select(1, self.index.flatten()).unflatten(1, self.index.shape).transpose(0, 1)
        if not self.hides:
            return None
        return torch.where(self.index == self.size, -math.inf, 0.0).to(dtype)[:, None]


def tile_biases(
    axes: Sequence[AxisTiles], pattern: LocalPattern, table: Tensor | None, dtype: torch.dtype
) -> Tensor | None:
    """Bias and mask (n or 1, heads or 1, T, S) of all tiles at once from a table (heads, ...); None where all is 0.

    Reading the table entry by entry is the slowest way for runtimes of exported graphs, so that each tile is read but
    once where tiles differ only in their masks, and by products with rows of one 1 where they differ.
    """
    if table is None:
        return BiasIndex.of(axes, pattern).bias(None, dtype)
    if any(is_symbolic(axis.relation.shape[0]) or axis.relation.shape[0] > 1 for axis in axes):
        return _biases_by_axis(axes, table.to(dtype))
    alike = BiasIndex.of([axis._replace(allowed=None) for axis in axes], pattern)
    bias, mask = alike.bias(table.flatten(1).to(dtype), dtype), BiasIndex.of(axes, pattern).bias(None, dtype)
    return bias if mask is None or bias is None else bias + mask


def _biases_by_axis(axes: Sequence[AxisTiles], table: Tensor) -> Tensor:
    """Bias and mask (n, heads, T, S) from a table (heads, entries of each axis)."""
    rank, heads = len(axes), table.shape[0]
    shapes = [(axis.query.shape[0], *axis.relation.shape[1:]) for axis in axes]  # (n, T, S) of each
    for axis, shape in zip(axes, shapes, strict=True):
        entries = torch.arange(table.shape[1], device=table.device)
        chosen = entries[:, None] == axis.relation.expand(shape).flatten()
        table = table.movedim(1, -1) @ chosen.to(table.dtype)
    for number, (axis, shape) in enumerate(zip(axes, shapes, strict=True)):
        if axis.allowed is not None:
            hidden = torch.where(axis.allowed.expand(shape), 0.0, -math.inf).to(table.dtype)
            table = table + hidden.reshape(-1, *[1] * (rank - 1 - number))
    parts = [range(1 + part, 1 + 3 * rank, 3) for part in range(3)]
    tiles = table.reshape(heads, *itertools.chain(*shapes)).permute(*parts[0], 0, *parts[1], *parts[2])
    return tiles.flatten(0, rank - 1).flatten(2, 1 + rank).flatten(3)


def extended(table: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A bias table (heads, ...) as (heads, size + 1), with an entry of minus infinity for hidden pairs."""
    return None if table is None else F.pad(table.flatten(1).to(dtype), (0, 1), value=-math.inf)


def tile_rows(axes: Sequence[AxisTiles], which: str, size: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Indices of the tiles' queries or keys in a flattened map of `size`, (n, T or S), and which of them exist."""
    positions = [getattr(axis, which) for axis in axes]
    strided = [p * math.prod(size[axis + 1 :]) for axis, p in enumerate(positions)]
    exist = outer_mask([getattr(axis, which + "_ok") for axis in axes], positions)
    return outer(strided, torch.add), exist


def home_rows(axes: Sequence[AxisTiles]) -> Tensor:
    """For each query of the flattened map, its place among the queries of all tiles."""
    counts, sides = zip(*(axis.query.shape for axis in axes), strict=True)
    parts = []
    for i, axis in enumerate(axes):
        whole_tiles = axis.home_tile * (math.prod(counts[i + 1 :]) * math.prod(sides))
        parts.append(whole_tiles + axis.home_offset * math.prod(sides[i + 1 :]))
    return outer(parts, torch.add)


@lru_cache(maxsize=1024)
def choose_tile(
    axes: tuple[AxisPattern, ...], size: tuple[int, ...], head_dim: int, whole_blocks: bool
) -> tuple[int, ...]:
    """Queries of a tile along each axis: few visited keys, few copies, matrices large enough to be worth a call.

    The model counts, for a tile of T queries and S keys, T * S logits and the copies of its rows, with weights fitted
    to CPU timings; only tiles whose logits and keys fit a chunk are considered, unless there is none.
    """

    def cost(tile: tuple[int, ...]) -> tuple[bool, float]:
        tiles, queries, keys = 1, 1, 1
        for axis, length, side in zip(axes, size, tile, strict=True):
            tiles *= axis.tile_count(length, side)
            queries *= side
            keys *= axis.keys(length, side)
        too_large = largest(queries, keys, head_dim) > CHUNK
        return too_large, tiles * (queries * keys + 40.0 * (queries + keys) + 1000.0)

    if whole_blocks:
        return tuple(axis.block for axis in axes)
    return min(itertools.product(*(axis.tile_sizes(length) for axis, length in zip(axes, size, strict=True))), key=cost)


def largest(side: int, span: int, head_dim: int) -> int:
    """Numbers in the largest tensor of a tile, for one head."""
    return span * max(side, 2 * head_dim)


@torch.compiler.assume_constant_result
def _tile_constant(
    axes: tuple[AxisPattern, ...], size: tuple[int, ...], head_dim: int, whole_blocks: bool
) -> tuple[int, ...]:
    """`choose_tile` as the compiler takes it: run, not traced."""
    return choose_tile(axes, size, head_dim, whole_blocks)


def cut_axes(
    pattern: LocalPattern,
    query_size: Sequence[int],
    key_size: Sequence[int],
    head_dim: int,
    whole_blocks: bool,
    device: torch.device,
) -> tuple[AxisTiles, ...]:
    """The axes of a map cut into tiles; compilers get the same tile for all sizes, since theirs may be symbolic."""
    axes = pattern.axes(len(key_size))
    compiles = torch.compiler.is_compiling() and not torch.compiler.is_exporting()  # which shows symbols as such
    if is_symbolic(*key_size) and pattern.boundary == "shift":
        tile = tuple(_half_a_window(axis) for axis in axes)
    elif compiles or is_symbolic(*key_size):
        known = tuple(
            axis._replace(shift=0, kernel_size=64 if is_symbolic(axis.kernel_size) else axis.kernel_size)
            for axis in axes
        )
        usual = tuple(max(64, axis.kernel_size * axis.dilation) for axis in known)
        tile = _tile_constant(known, usual, 32, whole_blocks)
    else:
        tile = choose_tile(axes, tuple(key_size), head_dim, whole_blocks)
    sizes = zip(axes, key_size, query_size, tile, strict=True)
    return tuple(axis.tiles(keys, queries, side, device) for axis, keys, queries, side in sizes)


def _half_a_window(axis: AxisPattern) -> int:
    """Queries of a tile for maps of any size: few visited keys, and two tiles, the least of a tracer, on small maps."""
    if is_symbolic(axis.kernel_size, axis.stride, axis.dilation):
        return 64
    return min(side for side in axis.tile_sizes(64 * axis.dilation) if side >= min(max(4, axis.kernel_size // 2), 32))
