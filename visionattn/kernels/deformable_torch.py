# SPDX-License-Identifier: Apache-2.0
"""Deformable attention in plain PyTorch: a chunk of queries at a time, places read bilinearly.

Eager calls save nothing but their inputs for the backward, which computes each chunk again; tracers and second
derivatives get the same arithmetic over all queries at once. Places are computed in float32 at least: half precision
cannot tell the pixels of a large map apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.kernels.bilinear import bilinear, is_traced, neighbours
from visionattn.kernels.local_torch import wide_dtype

# Logits of deformable attention, or numbers sampled by multi-scale deformable attention, that a chunk holds: 4 MiB of
# float32.
CHUNK = 1 << 20


def sample_points_torch(x: Tensor, points: Tensor) -> Tensor:
    """Samples (B, N, C) of a map (B, H, W, C) at points (B, groups, N, 2)."""
    maps = x.to(points.dtype).unflatten(-1, (points.shape[1], -1)).permute(0, 3, 4, 1, 2).contiguous()
    samples = bilinear(maps.flatten(0, 1), points.flip(-1).flatten(0, 1)[:, None], True)  # (B * groups, C', 1, N)
    return samples[:, :, 0].unflatten(0, points.shape[:2]).flatten(1, 2).transpose(1, 2).to(x.dtype)


# --- attention with an interpolated bias ------------------------------------------------------------------------------


def axis_points(side: int, grid: str, like: Tensor) -> Tensor:
    """Coordinates (side,) of the pixels along an axis, see `deformable_attention`."""
    pixel = torch.arange(side, dtype=like.dtype, device=like.device)
    if grid == "centers":
        return 2 * (pixel + 0.5) / side - 1
    # Counted from the end, so that a single pixel lies where clamped points do.
    last: Any = torch.sym_max(side - 1, 1)
    return 1 - 2 * (side - 1 - pixel) / last


class Queries(NamedTuple):
    """A call with its queries in a row: q (B, T, h, D), k and v (B, N, h, ·), points (B, g, N, 2), table (h, y, x)."""

    q: Tensor
    k: Tensor
    v: Tensor
    points: Tensor
    table: Tensor | None


def deformable_attention_torch(
    q: Tensor, k: Tensor, v: Tensor, points: Tensor, table: Tensor | None, grid: str, scale: float
) -> Tensor:
    """Output (B, H, W, h, V)."""
    size = q.shape[1:3]
    rows, columns = (axis_points(side, grid, points) for side in size)
    spread = (rows[:, None].expand(size), columns.expand(size))
    at = torch.stack(spread, -1).flatten(0, 1)  # (T, 2)
    flat = Queries(q.flatten(1, 2), k, v, points, None if table is None else table.to(points.dtype))
    out = _attend_written(flat, at, scale) if is_traced(q) else _Chunked.apply(scale, at, *flat)
    return out.unflatten(1, size)


def bias(table: Tensor, points: Tensor, at: Tensor) -> Tensor:
    """Bias (B, h, T, N) of queries at (T, 2): the table read at half the way from each point to the query."""
    batch, groups, _, _ = points.shape
    # One group after another: their heads read other parts of the table.
    way = (at[:, None] - points.transpose(0, 1).contiguous()[:, :, None]) / 2  # (g, B, T, N, 2)
    read = bilinear(table.unflatten(0, (groups, -1)), way.flip(-1).flatten(1, 2), True)  # (g, h / g, B * T, N)
    return read.unflatten(2, (batch, at.shape[0])).permute(2, 0, 1, 3, 4).flatten(1, 2)


def _attend(x: Queries, at: Tensor, scale: float) -> Tensor:
    """Attention (B, T, h, V) by PyTorch's fused attention where it has one."""
    q, k, v = (t.transpose(1, 2) for t in (x.q, x.k, x.v))
    mask = None if x.table is None else bias(x.table, x.points, at).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)


def _attend_written(x: Queries, at: Tensor, scale: float) -> Tensor:
    """The same, written out: for tracers, which fused strides would tie to a batch, and for second derivatives."""
    logits = torch.einsum("bthd,bnhd->bhtn", x.q * scale, x.k)
    if x.table is not None:
        logits = logits + bias(x.table, x.points, at).to(logits.dtype)
    return torch.einsum("bhtn,bnhd->bthd", logits.softmax(-1), x.v)


def chunks(x: Queries) -> Iterator[tuple[slice, slice]]:
    """Ranges of images and of their queries that have at most `CHUNK` logits."""
    batch, queries, each = x.q.shape[0], x.q.shape[1], x.q.shape[2] * x.k.shape[1]
    step = max(1, min(queries, CHUNK // max(each, 1)))
    images = max(1, CHUNK // max(each * queries, 1))
    for image in range(0, batch, images):
        for start in range(0, queries, step):
            yield slice(image, image + images), slice(start, start + step)


def _part(x: Queries, images: slice, queries: slice) -> Queries:
    return Queries(x.q[images, queries], x.k[images], x.v[images], x.points[images], x.table)


class _Chunked(torch.autograd.Function):
    """Saves the inputs alone; the backward computes logits and bias again."""

    @staticmethod
    def forward(ctx: Any, scale: float, at: Tensor, *flat: Tensor | None) -> Tensor:
        ctx.scale = scale
        ctx.save_for_backward(at, *flat)
        x = Queries(*flat)  # type: ignore[arg-type]
        out = x.q.new_empty(*x.q.shape[:-1], x.v.shape[-1])
        for images, queries in chunks(x):
            out[images, queries] = _attend(_part(x, images, queries), at[queries], scale)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        at, *flat = ctx.saved_tensors
        x, needed = Queries(*flat), ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():  # a graph of the gradient is wanted
            return None, None, *differentiable(_attend_written(x, at, ctx.scale), x, needed, grad)
        found = _gradients(x, at, grad, ctx.scale)
        return None, None, *(g if need else None for g, need in zip(found, needed, strict=True))


def differentiable(
    out: Tensor, inputs: Sequence[Tensor | None], needed: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """Gradients of `inputs` as a graph that can be differentiated again; None for those that are not needed."""
    wanted = [t for t, need in zip(inputs, needed, strict=True) if need]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True, allow_unused=True))  # type: ignore[arg-type]
    return [next(found) if need else None for need in needed]


def _gradients(x: Queries, at: Tensor, grad: Tensor, scale: float) -> list[Tensor | None]:
    """Gradients of all tensors; those that chunks share are summed in float32 at least."""
    total = [None if t is None else torch.zeros_like(t, dtype=wide_dtype(t.dtype)) for t in x]
    for images, queries in chunks(x):
        leaves = [None if t is None else t.detach().requires_grad_() for t in _part(x, images, queries)]
        here = Queries(*leaves)  # type: ignore[arg-type]
        with torch.enable_grad():
            out = _attend(here, at[queries], scale)
        wanted = [leaf for leaf in leaves if leaf is not None]
        found = iter(torch.autograd.grad(out, wanted, grad[images, queries], allow_unused=True))
        places: tuple[Any, ...] = ((images, queries), images, images, images, ...)
        for sums, place in zip(total, places, strict=True):
            addend = None if sums is None else next(found)
            if sums is not None and addend is not None:
                sums[place] += addend
    return [None if sums is None else sums.to(t.dtype) for sums, t in zip(total, x, strict=True)]  # type: ignore[union-attr]


# --- multi-scale deformable attention ---------------------------------------------------------------------------------


class Levels(NamedTuple):
    """Where the maps lie in a row of pixels: their heights, widths and first pixels."""

    heights: tuple[int, ...]
    widths: tuple[int, ...]
    starts: tuple[int, ...]


def ms_deform_attn_torch(
    value: Tensor, levels: Levels | tuple[Tensor, Tensor, Tensor], places: Tensor, weights: Tensor
) -> Tensor:
    """Output (N, Q, M * D) of value (N, S, M, D), places (N, Q, M, L, P, 2) in [0, 1] and weights (N, Q, M, L, P)."""
    wide = wide_dtype(torch.promote_types(value.dtype, places.dtype))
    inputs = (value.to(wide), places.to(wide), weights.to(wide))
    if not isinstance(levels, Levels):
        out = _sampled_by_index(*levels, *inputs)
    elif is_traced(value):
        out = _sampled(_maps(inputs[0], levels), *inputs[1:])
    else:
        out = _MultiScale.apply(levels, *inputs)
    return out.flatten(2).to(value.dtype)


def _maps(value: Tensor, levels: Levels) -> list[Tensor]:
    """Maps (N * M, D, H, W) of the levels."""
    found = []
    for height, width, start in zip(*levels, strict=True):
        pixels = value.narrow(1, start, height * width).permute(0, 2, 3, 1).contiguous()
        found.append(pixels.flatten(0, 1).unflatten(2, (height, width)))
    return found


def _sampled(maps: Sequence[Tensor], places: Tensor, weights: Tensor) -> Tensor:
    """Weighted samples (N, Q, M, D)."""
    batch, _, heads = places.shape[:3]
    grid = (2 * places - 1).permute(3, 0, 2, 1, 4, 5).contiguous().flatten(1, 2)  # (L, N * M, Q, P, 2)
    factors = weights.permute(3, 0, 2, 1, 4).contiguous().flatten(1, 2)[:, :, None]  # (L, N * M, 1, Q, P)
    total = torch.zeros((), dtype=places.dtype, device=places.device)
    for i, level in enumerate(maps):
        total = total + (bilinear(level, grid[i], False) * factors[i]).sum(-1)
    return total.unflatten(0, (batch, heads)).permute(0, 3, 1, 2)


def _sampled_by_index(
    heights: Tensor, widths: Tensor, starts: Tensor, value: Tensor, places: Tensor, weights: Tensor
) -> Tensor:
    """`_sampled` for sizes that only tensors hold, as in a traced graph: pixels are found by index arithmetic."""
    heights, widths, starts = (t[:, None] for t in (heights, widths, starts))
    image = torch.arange(value.shape[0], device=value.device)[:, None, None, None, None]
    head = torch.arange(value.shape[2], device=value.device)[:, None, None]
    x, y = (places[..., i] * side - 0.5 for i, side in enumerate((widths, heights)))  # (N, Q, M, L, P)
    total = torch.zeros((), dtype=value.dtype, device=value.device)
    for row, row_weight in neighbours(y, heights):
        for column, column_weight in neighbours(x, widths):
            values = value[image, starts + row * widths + column, head]  # (N, Q, M, L, P, D)
            total = total + (values * (row_weight * column_weight * weights)[..., None]).sum((3, 4))
    return total


class _MultiScale(torch.autograd.Function):
    """Saves the inputs alone; the backward samples again."""

    @staticmethod
    def forward(ctx: Any, levels: Levels, value: Tensor, places: Tensor, weights: Tensor) -> Tensor:
        ctx.levels = levels
        ctx.save_for_backward(value, places, weights)
        maps = _maps(value, levels)
        out = value.new_empty(*places.shape[:3], value.shape[3])
        for part in _query_parts(value, places):
            out[:, part] = _sampled(maps, places[:, part], weights[:, part])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, places, weights = inputs = ctx.saved_tensors
        needed = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            out = _sampled(_maps(value, ctx.levels), places, weights)
            return None, *differentiable(out, inputs, needed, grad)
        maps = [m.requires_grad_(needed[0]) for m in _maps(value, ctx.levels)]
        map_grads = [torch.zeros_like(m) for m in maps]
        place_grad, weight_grad = torch.empty_like(places), torch.empty_like(weights)
        for part in _query_parts(value, places):
            leaves = [t[:, part].detach().requires_grad_() for t in (places, weights)]
            with torch.enable_grad():
                out = _sampled(maps, *leaves)
            wanted = [*leaves, *(maps if needed[0] else ())]
            place_grad[:, part], weight_grad[:, part], *more = torch.autograd.grad(out, wanted, grad[:, part])
            for sums, addend in zip(map_grads, more, strict=False):
                sums += addend
        found = (_from_maps(map_grads, value, ctx.levels), place_grad, weight_grad)
        return None, *(g if need else None for g, need in zip(found, needed, strict=True))


def _from_maps(maps: Sequence[Tensor], value: Tensor, levels: Levels) -> Tensor:
    """Row of pixels (N, S, M, D) that holds the maps (N * M, D, H, W)."""
    total = torch.zeros_like(value)
    for level, start in zip(maps, levels.starts, strict=True):
        pixels = level.flatten(2).unflatten(0, (value.shape[0], value.shape[2])).permute(0, 3, 1, 2)
        total[:, start : start + pixels.shape[1]] += pixels
    return total


def _query_parts(value: Tensor, places: Tensor) -> Iterator[slice]:
    """Ranges of queries whose samples stay below `CHUNK` numbers, or below those of `value`, which exist anyway."""
    limit = max(CHUNK, value.numel())
    step = max(1, limit // max(places[:, :1, ..., 0].numel() * value.shape[3], 1))
    for start in range(0, places.shape[1], step):
        yield slice(start, start + step)
