# SPDX-License-Identifier: Apache-2.0
"""Maps read at real-valued places: `grid_sample` with zeros outside, differentiable any number of times."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def is_traced(x: Tensor) -> bool:
    """Whether a tracer follows the call, or the tensor holds no numbers: then there is nothing to compute piecewise."""
    traced = torch.compiler.is_compiling() or torch.compiler.is_exporting()
    return traced or x.is_meta or isinstance(x, FakeTensor)


def bilinear(maps: Tensor, places: Tensor, align_corners: bool) -> Tensor:
    """Values (n, C, *, *) of maps (n, C, H, W) at places (n, *, *, 2), (x, y) in [-1, 1]; zero beyond the border.

    Args:
        maps: What is read, in the dtype of `places`.
        places: Where it is read.
        align_corners: Whether -1 and 1 are the centres of the outermost pixels, not their outer edges.
    """
    if is_traced(maps):
        return F.grid_sample(maps, places, align_corners=align_corners)
    return _Bilinear.apply(maps, places, align_corners)


class _Bilinear(torch.autograd.Function):
    """PyTorch's own, whose gradient has no derivative; that is written out where a graph of the gradient is wanted."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, places: Tensor, align_corners: bool) -> Tensor:
        ctx.align_corners = align_corners
        ctx.save_for_backward(maps, places)
        return F.grid_sample(maps, places, align_corners=align_corners)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        maps, places = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        if not torch.is_grad_enabled():
            found = torch.ops.aten.grid_sampler_2d_backward(grad, maps, places, 0, 0, ctx.align_corners, needed)
            return *(g if need else None for g, need in zip(found, needed, strict=True)), None
        wanted = [t for t, need in zip((maps, places), needed, strict=True) if need]
        out = gathered(maps, places, ctx.align_corners)
        rest = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
        return *(next(rest) if need else None for need in needed), None


def gathered(maps: Tensor, places: Tensor, align_corners: bool) -> Tensor:
    """`bilinear` by gathering four neighbours for every place."""
    height, width = maps.shape[-2:]
    x, y = (pixels(places[..., axis], side, align_corners) for axis, side in enumerate((width, height)))
    total = torch.zeros((), dtype=maps.dtype, device=maps.device)
    for row, row_weight in neighbours(y, height):
        for column, column_weight in neighbours(x, width):
            index = (row * width + column).flatten(1)[:, None].expand(-1, maps.shape[1], -1)
            values = maps.flatten(2).gather(2, index).unflatten(2, places.shape[1:3])
            total = total + values * (row_weight * column_weight)[:, None]
    return total


def pixels(place: Tensor, side: int | Tensor, align_corners: bool) -> Tensor:
    """Real-valued index of a place of [-1, 1] on an axis of `side` pixels."""
    return (place + 1) / 2 * (side - 1) if align_corners else ((place + 1) * side - 1) / 2


def neighbours(position: Tensor, side: int | Tensor) -> list[tuple[Tensor, Tensor]]:
    """The two pixels around a real-valued index, moved into the axis, with their weights: 0 for those beyond it."""
    first = position.detach().floor()
    found = []
    for pixel, weight in ((first, first + 1 - position), (first + 1, position - first)):
        inside = (pixel >= 0) & (pixel < side)
        kept = torch.where(inside, pixel, torch.zeros_like(pixel))
        found.append((kept.long(), torch.where(inside, weight, torch.zeros_like(weight))))
    return found
