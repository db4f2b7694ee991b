# SPDX-License-Identifier: Apache-2.0
"""Aggregated attention in plain PyTorch: neighbours are shifted views of one padded map.

Eager calls work on some images, or some rows of an image, at a time and save nothing but their inputs for the backward,
which computes the logits again; tracers and second derivatives get the same arithmetic all at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from visionattn.kernels.local_torch import wide_dtype
from visionattn.kernels.pattern import is_symbolic

# Logits that one chunk holds: 16 MiB of float32.
CHUNK = 1 << 22


class Inputs(NamedTuple):
    """A call, heads first; keys and values have a margin of half a window around the map.

    n are the pooled pixels, K the positions of the window.
    """

    token_q: Tensor  # (B, h, H, W, D)
    q: Tensor
    k: Tensor  # (B, h, H + margins, W + margins, D)
    v: Tensor
    k_pool: Tensor  # (B, h, n, D)
    v_pool: Tensor
    bias: Tensor  # (h, K)
    pool_bias: Tensor  # (h, H, W, n)
    tokens: Tensor  # (h, D, K)
    token_bias: Tensor  # (h, K)


def aggregated_attention_torch(
    token_q: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    bias: Tensor,
    pool_bias: Tensor,
    tokens: Tensor,
    token_bias: Tensor,
    window: int,
) -> Tensor:
    """Output (B, H, W, h, V) of maps (B, H, W, h, ·) and pooled maps (B, n, h, ·)."""
    margin = window // 2
    k, v = (F.pad(x, (0, 0, 0, 0, margin, margin, margin, margin)) for x in (k, v))
    maps = (x.permute(0, 3, 1, 2, 4) for x in (token_q, q, k, v))
    pools = (x.transpose(1, 2) for x in (k_pool, v_pool))
    x = Inputs(*maps, *pools, *(table.to(q.dtype) for table in (bias, pool_bias, tokens, token_bias)))
    inside = positions_inside(q.shape[1], q.shape[2], window, q.device)
    is_traced = torch.compiler.is_compiling() or q.is_meta or isinstance(q, FakeTensor)
    is_whole = is_traced or torch.compiler.is_exporting()
    out = attend(x, inside, window) if is_whole else _Chunked.apply(window, inside, *x)
    return out.permute(0, 2, 3, 1, 4)


def positions_inside(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """Which positions of the window around each pixel are on the map: (height, width, window ** 2)."""
    offset = torch.arange(window, device=device) - window // 2
    rows, columns = (torch.arange(side, device=device)[:, None] + offset for side in (height, width))
    rows, columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    return (rows[:, None, :, None] & columns[:, None, :]).flatten(2)


def shifted(x: Tensor, height: int, width: int, window: int) -> Iterator[Tensor]:
    """The neighbour at each window position, (B, h, height, width, D), of a map with margins."""
    for row in range(window):
        band = _section(x, 2, row, height)
        for column in range(window):
            yield _section(band, 3, column, width)


def _section(x: Tensor, axis: int, first: int, length: int) -> Tensor:
    if is_symbolic(length):  # a slice is contiguous or not, and a trace is tied to what its example was
        return x.index_select(axis, torch.arange(length, device=x.device) + first)
    return x.narrow(axis, first, length)


def attention_weights(x: Inputs, inside: Tensor, window: int) -> Tensor:
    """Softmax over window positions and pooled pixels: (B, h, H, W, K + n)."""
    height, width = x.q.shape[2:4]
    near = torch.stack([(x.q * k).sum(-1) for k in shifted(x.k, height, width, window)], -1)
    near = (near + x.bias[:, None, None]).masked_fill(~inside, -torch.inf)
    far = torch.einsum("bhyxd,bhnd->bhyxn", x.q, x.k_pool) + x.pool_bias
    return torch.cat([near.to(far.dtype), far], -1).softmax(-1)


def attend(x: Inputs, inside: Tensor, window: int) -> Tensor:
    """Output (B, h, H, W, V)."""
    height, width = x.q.shape[2:4]
    weights = attention_weights(x, inside, window).to(x.v.dtype)
    near, far = weights[..., : window**2], weights[..., window**2 :]
    near = near + torch.einsum("bhyxd,hdk->bhyxk", x.token_q, x.tokens) + x.token_bias[:, None, None]
    out = torch.einsum("bhyxn,bhnd->bhyxd", far, x.v_pool)
    for position, v in enumerate(shifted(x.v, height, width, window)):
        out = out + near[..., position, None] * v
    return out


def chunks(x: Inputs) -> Iterator[tuple[slice, slice]]:
    """Images and rows whose logits stay below `CHUNK` numbers, if one row's do."""
    batch, heads, height, width, _ = x.q.shape
    row = heads * width * (x.bias.shape[1] + x.k_pool.shape[2])
    images, rows = max(1, CHUNK // (row * height)), min(height, max(1, CHUNK // row))
    for image in range(0, batch, images):
        for first in range(0, height, rows):
            yield slice(image, image + images), slice(first, min(first + rows, height))


def part(x: Inputs, images: slice, rows: slice, window: int) -> Inputs:
    """Views of what some rows of some images see."""
    wide = slice(rows.start, rows.stop + window - 1)
    queries = (t[images, :, rows] for t in x[:2])
    keys = (t[images, :, wide] for t in x[2:4])
    pools = (t[images] for t in x[4:6])
    return Inputs._make([*queries, *keys, *pools, x.bias, x.pool_bias[:, rows], *x[8:]])


class _Chunked(torch.autograd.Function):
    """Saves the inputs alone; the backward computes the logits again."""

    @staticmethod
    def forward(ctx: Any, window: int, inside: Tensor, *flat: Tensor) -> Tensor:
        ctx.window = window
        ctx.save_for_backward(inside, *flat)
        x = Inputs(*flat)
        batch, heads, height, width, _ = x.q.shape
        out = x.q.new_empty(batch, height, width, heads, x.v.shape[-1]).permute(0, 3, 1, 2, 4)
        for images, rows in chunks(x):
            out[images, :, rows] = attend(part(x, images, rows, window), inside[rows], window)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inside, *flat = ctx.saved_tensors
        x, needed = Inputs(*flat), ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():  # a graph of the gradient is wanted
            wanted = [t for t, need in zip(x, needed, strict=True) if need]
            found = iter(torch.autograd.grad(attend(x, inside, ctx.window), wanted, grad, create_graph=True))
            return None, None, *(next(found) if need else None for need in needed)
        totals = _gradients(x, inside, grad, ctx.window)
        return None, None, *(t if need else None for t, need in zip(totals, needed, strict=True))


def _gradients(x: Inputs, inside: Tensor, grad: Tensor, window: int) -> Inputs:
    """Gradients of all tensors, summed over the chunks that see them."""
    totals = Inputs(*(torch.zeros_like(t, dtype=wide_dtype(t.dtype)) for t in x))
    for images, rows in chunks(x):
        leaves = [t.detach().requires_grad_() for t in part(x, images, rows, window)]
        with torch.enable_grad():
            out = attend(Inputs(*leaves), inside[rows], window)
        found = torch.autograd.grad(out, leaves, grad[images, :, rows])
        for total, addend in zip(part(totals, images, rows, window), found, strict=True):
            total += addend
    return Inputs(*(total.to(t.dtype) for total, t in zip(totals, x, strict=True)))
