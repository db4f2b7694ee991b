# SPDX-License-Identifier: Apache-2.0
"""Routed attention in plain PyTorch: a chunk of regions at a time against the keys gathered for it.

Eager calls save nothing but their inputs for the backward, which gathers again; tracers and second derivatives get the
same arithmetic over all regions at once. Where sizes are symbolic, pixels are found by index arithmetic: a reshape
would tie the graph to what the example's sizes have in common.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from visionattn.kernels.local_torch import wide_dtype
from visionattn.kernels.pattern import is_symbolic

# Numbers of gathered keys and values that one chunk holds: 16 MiB of float32.
CHUNK = 1 << 22


class Regions(NamedTuple):
    """A call cut into regions, those of all images in a row: q (N, T, h, D), k and v (N, S, h, ·), routes (N, n)."""

    q: Tensor
    k: Tensor
    v: Tensor
    routes: Tensor
    weights: Tensor | None


def routed_attention_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: Tensor,
    route_weights: Tensor | None,
    grid: tuple[int, int],
    scale: float,
) -> Tensor:
    """Output (B, H, W, h, V) of maps (B, H, W, h, ·)."""
    if is_symbolic(*q.shape, *k.shape, *routes.shape, *grid):
        return _symbolic(q, k, v, routes, route_weights, grid, scale)
    batch, height, width = q.shape[:3]
    regions = grid[0] * grid[1]
    first = torch.arange(batch, device=routes.device)[:, None, None] * regions
    weights = None if route_weights is None else route_weights.to(q.dtype).flatten(0, 1)
    cut = Regions(*(regions_of(x, grid).flatten(0, 1) for x in (q, k, v)), (routes + first).flatten(0, 1), weights)
    is_traced = torch.compiler.is_compiling() or q.is_meta or isinstance(q, FakeTensor)
    out = attend(cut, scale) if is_traced or torch.compiler.is_exporting() else _Chunked.apply(scale, *cut)
    out = out.reshape(batch, grid[0], grid[1], height // grid[0], width // grid[1], *out.shape[2:])
    return out.transpose(2, 3).reshape(batch, height, width, *out.shape[5:])


def regions_of(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Map (B, H, W, ...) cut into its regions (B, rows * columns, pixels, ...), row by row."""
    batch, height, width = x.shape[:3]
    if is_symbolic(*x.shape, *grid):
        count, size = grid[0] * grid[1], _region_size(x, grid)
        region = torch.arange(count, device=x.device)[:, None]
        rows, columns = _place(region, torch.arange(size[0] * size[1], device=x.device), grid, size)
        return x[:, rows, columns]
    cut = x.reshape(batch, grid[0], height // grid[0], grid[1], width // grid[1], *x.shape[3:])
    return cut.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _region_size(x: Tensor, grid: tuple[int, int]) -> tuple[int, int]:
    return x.shape[1] // grid[0], x.shape[2] // grid[1]


def _place(region: Tensor, pixel: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Row and column in the map of a pixel of a region, by their indices."""
    (above, left), (row, column) = _divide(region, grid[1]), _divide(pixel, size[1])
    return above * size[0] + row, left * size[1] + column


def _divide(position: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Quotient and remainder; the latter so, since ONNX has no remainder by a size that is free."""
    quotient = position // side
    return quotient, position - quotient * side


def _symbolic(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: Tensor,
    route_weights: Tensor | None,
    grid: tuple[int, int],
    scale: float,
) -> Tensor:
    """`routed_attention_torch` without a reshape."""
    size = _region_size(k, grid)
    each = size[0] * size[1]
    key = torch.arange(routes.shape[2] * each, device=q.device)
    image = torch.arange(q.shape[0], device=q.device)[:, None, None]
    route, pixel = _divide(key, each)
    rows, columns = _place(routes.index_select(2, route), pixel, grid, size)
    k, v = k[image, rows, columns], v[image, rows, columns]  # (B, regions, keys, h, ·)
    if route_weights is not None:
        factors = route_weights.to(q.dtype).index_select(2, route)[..., None, None]
        k, v = k * factors, v * factors
    # ONNX knows the fused attention of four axes. Merging axes of other strides would tie a trace to a batch of many.
    tokens = (x.transpose(2, 3).contiguous().flatten(0, 1) for x in (regions_of(q, grid), k, v))
    out = F.scaled_dot_product_attention(*tokens, scale=scale).unflatten(0, (-1, routes.shape[1])).transpose(2, 3)
    size = _region_size(q, grid)
    positions = (torch.arange(side, device=q.device) for side in q.shape[1:3])
    (above, row), (left, column) = (_divide(*pair) for pair in zip(positions, size, strict=True))
    return out[:, (above * grid[1])[:, None] + left, (row * size[1])[:, None] + column]


def attend(x: Regions, scale: float) -> Tensor:
    """Attention (N, T, h, V) of regions over the keys gathered for them."""
    k, v = _weighted(x.k[x.routes], x.weights), _weighted(x.v[x.routes], x.weights)
    return _attend(x.q, k, v, scale)


def _weighted(gathered: Tensor, weights: Tensor | None) -> Tensor:
    return gathered if weights is None else gathered * weights[:, :, None, None, None]


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention of q (N, T, h, D) over gathered k, v (N, n, S, h, ·)."""
    q, k, v = (t.transpose(1, 2) for t in (q, k.flatten(1, 2), v.flatten(1, 2)))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)


def chunks(x: Regions) -> Iterator[slice]:
    """Ranges of query regions whose gathered keys and values stay below `CHUNK` numbers."""
    each = x.routes.shape[1] * (x.k[0].numel() + x.v[0].numel()) if x.k.shape[0] else 1
    step = max(1, CHUNK // each)
    for start in range(0, x.q.shape[0], step):
        yield slice(start, start + step)


def _part(x: Regions, part: slice) -> Regions:
    """The query regions of a range, with all keys."""
    return Regions(x.q[part], x.k, x.v, x.routes[part], None if x.weights is None else x.weights[part])


class _Chunked(torch.autograd.Function):
    """Saves the inputs alone; the backward gathers again."""

    @staticmethod
    def forward(ctx: Any, scale: float, *flat: Tensor | None) -> Tensor:
        ctx.scale = scale
        ctx.save_for_backward(*flat)
        x = Regions(*flat)  # type: ignore[arg-type]
        out = x.q.new_empty(*x.q.shape[:-1], x.v.shape[-1])
        for part in chunks(x):
            out[part] = attend(_part(x, part), scale)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, needed = Regions(*ctx.saved_tensors), ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():  # a graph of the gradient is wanted
            return None, *_differentiable_gradients(x, needed, grad, ctx.scale)
        found = _gradients(x, grad, ctx.scale)
        return None, *(g if need else None for g, need in zip(found, needed, strict=True))


def _gradients(x: Regions, grad: Tensor, scale: float) -> Regions:
    """Gradients of all tensors; those of `routes` are None."""
    wide = wide_dtype(x.q.dtype)
    total = [torch.zeros_like(t, dtype=wide) for t in (x.k, x.v)]
    grad_q, grad_weights = torch.empty_like(x.q), None if x.weights is None else torch.empty_like(x.weights)
    for part in chunks(x):
        here = _part(x, part)
        leaves = [here.q, here.k[here.routes], here.v[here.routes]] + ([] if x.weights is None else [here.weights])
        leaves = [leaf.detach().requires_grad_() for leaf in leaves if leaf is not None]
        with torch.enable_grad():
            q, k, v, *rest = leaves
            weights = rest[0] if rest else None
            out = _attend(q, _weighted(k, weights), _weighted(v, weights), scale)
        grad_q[part], *gathered = torch.autograd.grad(out, leaves, grad[part])
        for sums, addend in zip(total, gathered, strict=False):
            sums.index_add_(0, here.routes.flatten(), addend.flatten(0, 1).to(wide))
        if grad_weights is not None:
            grad_weights[part] = gathered[2]
    return Regions(grad_q, total[0].to(x.k.dtype), total[1].to(x.v.dtype), None, grad_weights)  # type: ignore[arg-type]


def _differentiable_gradients(x: Regions, needed: Sequence[bool], grad: Tensor, scale: float) -> list[Tensor | None]:
    """Gradients as a graph that can be differentiated again; all regions at once."""
    # Written out: the fused attention has no second derivative on every device.
    k, v = _weighted(x.k[x.routes], x.weights).flatten(1, 2), _weighted(x.v[x.routes], x.weights).flatten(1, 2)
    weights = (torch.einsum("nthd,nshd->nhts", x.q, k) * scale).softmax(-1)
    out = torch.einsum("nhts,nshd->nthd", weights, v)
    wanted = [t for t, need in zip(x, needed, strict=True) if need]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return [next(found) if need else None for need in needed]
