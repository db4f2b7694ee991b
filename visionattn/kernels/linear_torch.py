# SPDX-License-Identifier: Apache-2.0
"""Attention of linear cost in plain PyTorch.

Agent attention computes its logits for some images and heads at a time. Eager calls save nothing but their inputs for
the backward, which computes the logits again; tracers and second derivatives get the same arithmetic all at once. The
others need no more than a few copies of their inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from visionattn.kernels.local_torch import wide_dtype

# Logits that one chunk holds: 16 MiB of float32.
CHUNK = 1 << 22


class Agents(NamedTuple):
    """A call of agent attention, heads first: q (B, h, N, D), k and v (B, h, M, ·), agents (B, h, A, D)."""

    q: Tensor
    k: Tensor
    v: Tensor
    agents: Tensor
    key_bias: Tensor | None  # (h, A, M)
    query_bias: Tensor | None  # (h, N, A)


def agent_attention_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    agents: Tensor,
    key_bias: Tensor | None,
    query_bias: Tensor | None,
    scale: float,
) -> Tensor:
    """Output (B, N, h, V) of tokens (B, N, h, ·)."""
    biases = (None if bias is None else bias.to(q.dtype) for bias in (key_bias, query_bias))
    x = Agents(*(t.transpose(1, 2) for t in (q, k, v, agents)), *biases)
    is_traced = torch.compiler.is_compiling() or q.is_meta or isinstance(q, FakeTensor)
    out = attend(x, scale) if is_traced or torch.compiler.is_exporting() else _Chunked.apply(scale, *x)
    return out.transpose(1, 2)


def attend(x: Agents, scale: float) -> Tensor:
    """Agents gather the values, queries read the agents: (B, h, N, V)."""
    gathered = F.scaled_dot_product_attention(x.agents, x.k, x.v, attn_mask=x.key_bias, scale=scale)
    return F.scaled_dot_product_attention(x.q, x.agents, gathered, attn_mask=x.query_bias, scale=scale)


def _attend_explicitly(x: Agents, scale: float) -> Tensor:
    """`attend` with second derivatives, which the fused attention has not on every device."""
    gathered = _softmax(x.agents, x.k, x.key_bias, scale) @ x.v
    return _softmax(x.q, x.agents, x.query_bias, scale) @ gathered


def _softmax(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    logits = q * scale @ k.transpose(-2, -1)
    return (logits if bias is None else logits + bias).softmax(-1)


def chunks(x: Agents) -> Iterator[tuple[slice, slice]]:
    """Ranges of images and of heads whose logits stay below `CHUNK` numbers, at least one of each."""
    batch, heads, count = x.agents.shape[:3]
    each = count * max(x.q.shape[2], x.k.shape[2])  # the two softmaxes take turns
    many_heads = max(1, min(heads, CHUNK // max(each, 1)))
    images = max(1, CHUNK // max(each * heads, 1)) if many_heads == heads else 1
    for image in range(0, batch, images):
        for head in range(0, heads, many_heads):
            yield slice(image, image + images), slice(head, head + many_heads)


def _part(x: Agents, images: slice, heads: slice) -> Agents:
    """Some images and heads, as leaves of a graph of their own."""
    tokens = (t[images, heads] for t in x[:4])
    return Agents(*tokens, *(None if bias is None else bias[heads] for bias in x[4:]))


class _Chunked(torch.autograd.Function):
    """Saves the inputs alone; the backward computes the logits again."""

    @staticmethod
    def forward(ctx: Any, scale: float, *flat: Tensor | None) -> Tensor:
        ctx.scale = scale
        ctx.save_for_backward(*flat)
        x = Agents(*flat)  # type: ignore[arg-type]
        out = x.q.new_empty(*x.q.shape[:-1], x.v.shape[-1])
        for images, heads in chunks(x):
            out[images, heads] = attend(_part(x, images, heads), scale)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, needed = Agents(*ctx.saved_tensors), ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():  # a graph of the gradient is wanted
            wanted = [t for t, need in zip(x, needed, strict=True) if need]
            found = iter(torch.autograd.grad(_attend_explicitly(x, ctx.scale), wanted, grad, create_graph=True))
            return None, *(next(found) if need else None for need in needed)
        return None, *(g if need else None for g, need in zip(_gradients(x, grad, ctx.scale), needed, strict=True))


def _gradients(x: Agents, grad: Tensor, scale: float) -> Agents:
    """Gradients of all tensors; those of biases are sums over images, in float32 at least."""
    total = Agents(*map(torch.empty_like, x[:4]), *(_zeros_like(bias) for bias in x[4:]))
    for images, heads in chunks(x):
        here = Agents(*(None if t is None else t.detach().requires_grad_() for t in _part(x, images, heads)))
        leaves = [leaf for leaf in here if leaf is not None]
        with torch.enable_grad():
            out = attend(here, scale)
        found = iter(torch.autograd.grad(out, leaves, grad[images, heads]))
        for sums, addend in [(s, next(found)) for s in total if s is not None]:
            if sums.ndim == 4:
                sums[images, heads] = addend
            else:
                sums[heads] += addend
    return Agents(*total[:4], *(None if s is None else s.to(x.q.dtype) for s in total[4:]))


def _zeros_like(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else torch.zeros_like(bias, dtype=wide_dtype(bias.dtype))


def focused_linear_attention_torch(
    q: Tensor, k: Tensor, v: Tensor, temperature: Tensor | None, power: float, eps: float
) -> Tensor:
    """Output (B, N, h, V) of tokens (B, N, h, ·)."""
    wide = wide_dtype(q.dtype)
    q, k = (focus(x.to(wide), temperature, power, eps) for x in (q, k))
    mean = k.mean(1, keepdim=True)
    # The normaliser may be as small as eps: products of channels, not a matrix product that autocast would round.
    normaliser = (q * mean).sum(-1, keepdim=True) + eps
    state = torch.einsum("bmhd,bmhe->bhde", k / k.shape[1], v.to(wide))
    return (torch.einsum("bnhd,bhde->bnhe", q, state) / normaliser).to(v.dtype)


def focus(x: Tensor, temperature: Tensor | None, power: float, eps: float) -> Tensor:
    """Positive features (B, N, h, D): each token's direction sharpened by a power, its norm over all heads kept."""
    x = x.relu() + eps
    if temperature is not None:
        x = x / temperature.to(x.dtype)
    # Powers of numbers near eps would underflow. The quotient does not depend on the scale, so it has no gradient.
    sharp = (x / x.detach().amax((-2, -1), keepdim=True)) ** power
    return sharp * (_norm(x) / _norm(sharp))


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)


def inline_attention_torch(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Output (B, N, h, V) of tokens (B, N, h, ·)."""
    wide = wide_dtype(q.dtype)
    k, v = k.to(wide), v.to(wide)
    # Centred keys first: the paper's form is a difference of sums that nearly cancel.
    centred = (k - k.mean(1, keepdim=True)) * (scale / k.shape[1])
    state = torch.einsum("bmhd,bmhe->bhde", centred, v)
    return (torch.einsum("bnhd,bhde->bnhe", q.to(wide), state) + v.mean(1, keepdim=True)).to(q.dtype)


class Flows(NamedTuple):
    """What passes between queries (sinks) and keys (sources): (B, N, h, 1) and (B, M, h, 1)."""

    incoming: Tensor  # inverse of what reaches a sink
    outgoing: Tensor  # inverse of what leaves a source
    conserved_sink: Tensor  # what reaches a sink once every source gives one in total
    conserved_source: Tensor  # what leaves a source once every sink takes one in total, within [-1, 1]


def flows_between(sinks: Tensor, sources: Tensor, eps: float, flow_eps: float) -> Flows:
    """Flows of capacities (B, N, h, D) and (B, M, h, D)."""
    incoming = 1 / (_dot(sinks, sources.sum(1, keepdim=True), eps) + flow_eps)
    outgoing = 1 / (_dot(sources, sinks.sum(1, keepdim=True), eps) + flow_eps)
    conserved_sink = _dot(sinks, (sources * outgoing).sum(1, keepdim=True), eps) + flow_eps
    conserved_source = _dot(sources, (sinks * incoming).sum(1, keepdim=True), eps) + flow_eps
    return Flows(incoming, outgoing, conserved_sink, conserved_source.clamp(-1, 1))


def _dot(x: Tensor, total: Tensor, eps: float) -> Tensor:
    # No matrix product, which autocast would round: sums over thousands of tokens meet terms of eps.
    return ((x + eps) * (total + eps)).sum(-1, keepdim=True)


def flow_attention_torch(q: Tensor, k: Tensor, v: Tensor, eps: float, flow_eps: float) -> Tensor:
    """Output (B, N, h, V) of tokens (B, N, h, ·)."""
    wide = wide_dtype(q.dtype)
    sinks, sources = q.to(wide).sigmoid(), k.to(wide).sigmoid()
    flows = flows_between(sinks, sources, eps, flow_eps)
    allocation = (flows.conserved_sink * q.shape[1] / k.shape[1]).sigmoid()
    # The softmax keeps the state a mean of values; their number comes in with the inverse flow, which it cancels.
    state = torch.einsum("bmhd,bmhe->bhde", sources, v.to(wide) * flows.conserved_source.softmax(1))
    out = torch.einsum("bnhd,bhde->bnhe", sinks, state)
    return (out * (flows.incoming * k.shape[1] * allocation)).to(v.dtype)
