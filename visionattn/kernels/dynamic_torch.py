# SPDX-License-Identifier: Apache-2.0
"""Dynamic convolution in plain PyTorch: the kernels of a row of pixels as a band in a matrix over the rows they see.

Eager calls go a chunk of rows at a time, save nothing but their inputs for the backward, and make the bands again
there; tracers and second derivatives get the same arithmetic over all rows at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from visionattn.kernels.bilinear import is_traced
from visionattn.kernels.local_torch import wide_dtype

# Numbers of unfolded values and bands that one chunk holds: 16 MiB of float32.
CHUNK = 1 << 22


def dynamic_convolution_torch(kernels: Tensor, v: Tensor, size: int) -> Tensor:
    """Output (B, H, W, h, D) of kernels (B, H, W, h, size ** 2) and values (B, H, W, h, D)."""
    if is_traced(v):
        return _convolve(kernels, v, size, window_pixels(v.shape[1], size, v))
    return _Chunked.apply(kernels, v, size)


def window_pixels(side: int, size: int, like: Tensor) -> Tensor:
    """Pixels `(side, size)` of the window of each pixel of an axis."""
    first = (torch.arange(side, device=like.device) - size // 2).clamp(min=0)
    # The upper bound as a tensor: a symbolic one has no place in `clamp` of an exported graph.
    last = torch.full_like(first, side - size)
    return torch.minimum(first, last)[:, None] + torch.arange(size, device=like.device)


def _bands(kernels: Tensor, size: int) -> Tensor:
    """Kernels (B, R, W, h, size ** 2) of rows as matrices (B, R, h, W, size * W) over the pixels of the rows seen."""
    width = kernels.shape[2]
    taps = kernels.permute(0, 1, 3, 2, 4).unflatten(4, (size, size))
    zeros = taps.new_zeros(*taps.shape[:5], width)
    return zeros.scatter(5, _columns(taps, size), taps).flatten(4)


def _columns(taps: Tensor, size: int) -> Tensor:
    """Column of the map of every tap (B, R, h, W, size, size)."""
    return window_pixels(taps.shape[3], size, taps)[:, None].expand(taps.shape)


def _unfolded(v: Tensor, rows: Tensor) -> Tensor:
    """Values (B, R, h, size * W, D) of the rows (R, size) that rows of pixels see."""
    return v[:, rows].permute(0, 1, 4, 2, 3, 5).contiguous().flatten(3, 4)


def _convolve(kernels: Tensor, v: Tensor, size: int, rows: Tensor) -> Tensor:
    """Output (B, R, W, h, D) of the pixels whose kernels these are and whose windows have these `rows` of the map."""
    return (_bands(kernels, size) @ _unfolded(v, rows)).permute(0, 1, 3, 2, 4)


def _chunks(v: Tensor, size: int) -> Iterator[slice]:
    """Ranges of rows whose unfolded values and bands stay below `CHUNK` numbers."""
    batch, height, width, heads, dim = v.shape
    each = batch * heads * size * width * (dim + width)
    step = max(1, CHUNK // max(each, 1))
    for start in range(0, height, step):
        yield slice(start, start + step)


class _Chunked(torch.autograd.Function):
    """Saves the inputs alone."""

    @staticmethod
    def forward(ctx: Any, kernels: Tensor, v: Tensor, size: int) -> Tensor:
        ctx.size = size
        ctx.save_for_backward(kernels, v)
        rows = window_pixels(v.shape[1], size, v)
        out = v.new_empty(v.shape)
        for part in _chunks(v, size):
            out[:, part] = _convolve(kernels[:, part], v, size, rows[part])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kernels, v = ctx.saved_tensors
        rows = window_pixels(v.shape[1], ctx.size, v)
        if torch.is_grad_enabled():  # a graph of the gradient is wanted
            wanted = [t for t, need in zip((kernels, v), ctx.needs_input_grad, strict=False) if need]
            out = _convolve(kernels, v, ctx.size, rows)
            found = iter(torch.autograd.grad(out, wanted, grads[0], create_graph=True))
            return *(next(found) if need else None for need in ctx.needs_input_grad[:2]), None
        return *_gradients(kernels, v, grads[0], ctx.size, rows), None


def _gradients(kernels: Tensor, v: Tensor, grad: Tensor, size: int, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of kernels and values."""
    grad_kernels = torch.empty_like(kernels)
    grad_v = torch.zeros_like(v, dtype=wide_dtype(v.dtype))
    for part in _chunks(v, size):
        here = grad[:, part].permute(0, 1, 3, 2, 4)  # (B, R, h, W, D)
        of_bands = (here @ _unfolded(v, rows[part]).transpose(3, 4)).unflatten(4, (size, -1))
        taps = of_bands.gather(5, _columns(of_bands[..., :size], size))
        grad_kernels[:, part] = taps.flatten(4).permute(0, 1, 3, 2, 4)
        of_values = _bands(kernels[:, part], size).transpose(3, 4) @ here
        of_rows = of_values.unflatten(3, (size, -1)).permute(0, 1, 3, 4, 2, 5).flatten(1, 2)
        grad_v.index_add_(1, rows[part].flatten(), of_rows.to(grad_v.dtype))
    return grad_kernels, grad_v.to(v.dtype)
