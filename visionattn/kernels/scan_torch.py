# SPDX-License-Identifier: Apache-2.0
"""Selective scan in plain PyTorch: a chunk of images and channels at a time, blocks of the sequence side by side.

A sequence of L tokens is cut into about sqrt(L) blocks. All blocks are scanned at once, token by token of a block,
then their ends are carried from block to block: 2 sqrt(L) steps, each on many numbers, with nothing divided and no
logarithm, so that products that underflow do no harm. The gradient of a scan is a scan of the reversed sequence.

Compilers and second derivatives get scans by doubling, as a tree of blocks, whose graphs differ little with the length.
Exported graphs get one loop, ONNX's Scan, for any length.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from visionattn.kernels.local_torch import wide_dtype
from visionattn.kernels.pattern import ceil_div, is_symbolic

# Numbers of one tensor of states that are kept at a time: caches of a CPU are small, kernels of a GPU want work.
CHUNK = {"cpu": 1 << 19}
DEVICE_CHUNK = 1 << 25
# Tokens of a block of the tree, and its height where the length is symbolic: a million tokens.
BLOCK, LEVELS = 16, 5


def selective_scan_torch(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Output (b, L, c) and last state (b, c, n)."""
    dtype, wide = u.dtype, wide_dtype(u.dtype)
    u, delta, A, B, C = (x.to(wide) for x in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(wide)
    if delta_softplus:
        delta = F.softplus(delta)
    parts = [x.flip(1) for x in (u, delta, B, C)] if reverse else [u, delta, B, C]
    out, state = _walk_of(u)(*parts, A)
    out = out.flip(1) if reverse else out
    if D is not None:
        out = out + D.to(wide) * u
    if z is not None:
        out = out * F.silu(z.to(wide))
    return out.to(dtype), state


def _walk_of(u: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    if torch.compiler.is_exporting():
        return as_one_loop
    is_traced = torch.compiler.is_compiling() or u.is_meta or isinstance(u, FakeTensor)
    return all_at_once if is_traced else _Chunked.apply


def scan_in_place(factors: Tensor, x: Tensor) -> None:
    """``x[t] += factors[t] x[t - 1]`` for t = 1, 2, ... along the first axis, whose length `block_length` divides.

    `factors` are overwritten.
    """
    block = block_length(x.shape[0])
    factors, x = (t.unflatten(0, (-1, block)) for t in (factors, x))
    for (factor, here), (earlier, before) in _neighbours(zip(factors.unbind(1), x.unbind(1), strict=True)):
        here.addcmul_(factor, before)
        factor.mul_(earlier)
    for (factor, here), (_, before) in _neighbours(zip(factors, x, strict=True)):
        here.addcmul_(factor, before[-1:])


def _neighbours(pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[tuple[Tensor, Tensor], ...]]:
    """Each pair but the first, with the one before it."""
    return ((here, before) for before, here in itertools.pairwise(pairs))


def block_length(length: int) -> int:
    """Tokens of a block; those of a sequence padded to a multiple of it are the same."""
    return math.isqrt(length - 1) + 1


def padded_length(length: int) -> int:
    """Least length, from this one on, that consists of whole blocks."""
    return ceil_div(length, block_length(length)) * block_length(length)


def chunks(u: Tensor, size: int) -> Iterator[tuple[slice, slice]]:
    """Ranges of images and channels whose states, `size` numbers a token and channel, stay below the limit."""
    batch, length, channels = u.shape
    sequences = max(1, CHUNK.get(u.device.type, DEVICE_CHUNK) // (padded_length(length) * size))
    images = max(1, sequences // channels)
    for i in range(0, batch, images):
        for j in range(0, channels, sequences):
            yield slice(i, i + images), slice(j, j + sequences)


def _time_first(x: Tensor) -> Tensor:
    """(L, b, ·) of (b, L, ·), padded by zeros: steps of zero length leave the state alone."""
    x = x.transpose(0, 1)
    return F.pad(x, (0, 0, 0, 0, 0, padded_length(x.shape[0]) - x.shape[0]))


def _terms(u: Tensor, delta: Tensor, B: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """What states are multiplied by and added to, (L, b, c, n), of u, delta (L, b, c), B (L, b, n), A (c, n)."""
    return (delta[..., None] * A).exp_(), (delta * u)[..., None] * B[:, :, None]


class _Chunked(torch.autograd.Function):
    """Saves the inputs alone; the backward scans again."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*inputs)
        u, delta, B, C, A = inputs
        out, last = torch.empty_like(u), u.new_empty(u.shape[0], *A.shape)
        with torch.autocast(u.device.type, enabled=False):
            for images, channels in chunks(u, A.shape[1]):
                parts = (u[images, :, channels], delta[images, :, channels], B[images])
                factors, states = _terms(*map(_time_first, parts), A[channels])
                scan_in_place(factors, states)
                summed = torch.einsum("lbcn,bln->blc", states[: u.shape[1]], C[images])
                out[images, :, channels], last[images, channels] = summed, states[-1]
        return out, last

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        inputs, needed = ctx.saved_tensors, ctx.needs_input_grad
        if torch.is_grad_enabled():  # a graph of the gradient is wanted
            return _differentiable_gradients(inputs, needed, (grad, grad_last))
        with torch.autocast(inputs[0].device.type, enabled=False):
            found = _gradients(inputs, grad, grad_last)
        return tuple(g if need else None for g, need in zip(found, needed, strict=True))


def _gradients(inputs: Sequence[Tensor], grad: Tensor, grad_last: Tensor) -> list[Tensor]:
    """Gradients of u, delta, B, C, A."""
    u, delta, B, C, A = inputs
    found = [torch.empty_like(u), torch.empty_like(delta), *(torch.zeros_like(x) for x in (B, C, A))]
    for images, channels in chunks(u, A.shape[1]):
        parts = [x[images, :, channels] for x in (u, delta)] + [x[images] for x in (B, C)]
        some = _chunk_gradients(
            [_time_first(x) for x in parts],
            A[channels],
            _time_first(grad[images, :, channels]),
            grad_last[images, channels],
        )
        grad_u, grad_delta, grad_B, grad_C = (x[: u.shape[1]].transpose(0, 1) for x in some[:4])
        found[0][images, :, channels], found[1][images, :, channels] = grad_u, grad_delta
        found[2][images] += grad_B
        found[3][images] += grad_C
        found[4][channels] += some[4]
    return found


def _chunk_gradients(parts: list[Tensor], A: Tensor, grad: Tensor, grad_last: Tensor) -> tuple[Tensor, ...]:
    """Gradients of u, delta, B, C, time first, and of A."""
    u, delta, B, C = parts
    factors, states = _terms(u, delta, B, A)
    scan_in_place(factors.clone(), states)
    grad_C = torch.einsum("lbcn,lbc->lbn", states, grad)
    # What reaches a state: its own output, and the next state by that one's factor; from the last one back.
    reached = (grad[..., None] * C[:, :, None]).flip(0)
    reached[0] += grad_last
    scan_in_place(torch.cat([torch.ones_like(factors[:1]), factors[1:].flip(0)]), reached)
    reached = reached.flip(0)
    inflow = torch.einsum("lbcn,lbn->lbc", reached, B)
    grad_B = torch.einsum("lbcn,lbc->lbn", reached, delta * u)
    exponents = factors[1:].mul_(states[:-1]).mul_(reached[1:])  # gradient of delta A; the first step starts from 0
    grad_delta = inflow * u
    grad_delta[1:] += torch.einsum("lbcn,cn->lbc", exponents, A)
    return inflow * delta, grad_delta, grad_B, grad_C, torch.einsum("lbcn,lbc->cn", exponents, delta[1:])


def _differentiable_gradients(
    inputs: Sequence[Tensor], needed: Sequence[bool], grads: tuple[Tensor, Tensor]
) -> tuple[Tensor | None, ...]:
    """Gradients as a graph that can be differentiated again; all at once."""
    wanted = [x for x, need in zip(inputs, needed, strict=True) if need]
    found = iter(torch.autograd.grad(all_at_once(*inputs), wanted, grads, create_graph=True, allow_unused=True))
    return tuple(next(found) if need else None for need in needed)


def all_at_once(u: Tensor, delta: Tensor, B: Tensor, C: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Output (b, L, c) and last state (b, c, n), without loops over tokens or chunks."""
    factors = (delta[..., None] * A).exp()
    states = _tree(factors, (delta * u)[..., None] * B[:, :, None], LEVELS)
    return (states * C[:, :, None]).sum(-1), states[:, -1]


def as_one_loop(u: Tensor, delta: Tensor, B: Tensor, C: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Output (b, L, c) and last state (b, c, n), as a loop over tokens that is one node of the graph."""
    from torch._higher_order_ops.scan import scan  # takes a while to import, and exporters alone need it

    def step(state: Tensor, token: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        u, delta, B, C = token
        state = (delta[..., None] * A).exp() * state + (delta * u)[..., None] * B[:, None]
        return state, (state * C[:, None]).sum(-1)

    start = u.new_zeros(u.shape[0], *A.shape)
    state, out = scan(step, start, (u, delta, B, C), dim=1)
    return out, state


def _tree(factors: Tensor, x: Tensor, levels: int) -> Tensor:
    """``x_t + factors_t x_(t-1) + ...`` along the second axis: blocks by doubling, their ends by a tree of them."""
    length = x.shape[1]
    count = ceil_div(length, BLOCK)
    amounts: Any = (0, 0, 0, 0, 0, count * BLOCK - length)
    factors = F.pad(factors, amounts, value=1.0).unflatten(1, (count, BLOCK))
    x = F.pad(x, amounts).unflatten(1, (count, BLOCK))
    for step in (2**i for i in range(BLOCK.bit_length() - 1)):
        late = factors[:, :, step:]
        x = torch.cat([x[:, :, :step], x[:, :, step:] + late * x[:, :, :-step]], 2)
        factors = torch.cat([factors[:, :, :step], late * factors[:, :, :-step]], 2)
    if levels > 1 and (is_symbolic(count) or count > 1):
        ends = _tree(factors[:, :, -1], x[:, :, -1], levels - 1 if is_symbolic(count) else levels)
        block = torch.arange(count, device=x.device)
        before = ends.index_select(1, (block - 1).clamp(min=0)) * (block > 0).to(x.dtype)[:, None, None]
        x = x + factors * before[:, :, None]
    # A slice is contiguous or not, and a trace is tied to what its example was.
    return x.flatten(1, 2).index_select(1, torch.arange(length, device=x.device))
