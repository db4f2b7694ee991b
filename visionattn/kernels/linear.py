# SPDX-License-Identifier: Apache-2.0
"""Attention whose cost and memory are linear in the tokens: by agents, focused features, injective weights, flows."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from visionattn.kernels import dispatch, local  # noqa: F401  local registers the backends
from visionattn.kernels.linear_torch import (
    agent_attention_torch,
    flow_attention_torch,
    focused_linear_attention_torch,
    inline_attention_torch,
)
from visionattn.kernels.pattern import is_symbolic

dispatch.register_op("torch", "agent_attention", agent_attention_torch)
dispatch.register_op("torch", "focused_linear_attention", focused_linear_attention_torch)
dispatch.register_op("torch", "inline_attention", inline_attention_torch)
dispatch.register_op("torch", "flow_attention", flow_attention_torch)


def agent_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    agents: Tensor,
    *,
    key_bias: Tensor | None = None,
    query_bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention through a few agents, which attend to all keys and are then attended to by all queries.

    ``softmax(scale <q, a> + query_bias) softmax(scale <a, k> + key_bias) v``. Logits are computed for a bounded number
    of images and heads at a time, and again in the backward, which keeps the inputs only.
    Paper: Agent Attention, arXiv 2312.08874.

    Args:
        q: Queries (B, *spatial, heads, head_dim), N of them.
        k: Keys (B, *spatial_k, heads, head_dim), M of them.
        v: Values (B, *spatial_k, heads, v_dim).
        agents: Agents (B, A, heads, head_dim).
        key_bias: Added to the agents' logits (heads, A, M); None for none.
        query_bias: Added to the queries' logits (heads, N, A); None for none.
        scale: Factor of the products; None means ``head_dim ** -0.5``.

    Returns:
        Output (B, *spatial, heads, v_dim).

    Raises:
        ValueError: Shapes don't fit together.
        TypeError: q, k, v and agents differ in dtype.
        RuntimeError: The backend asked for can't run the call.
    """
    _check_dtypes(q=q, k=k, v=v, agents=agents)
    flat_q, flat_k, flat_v = _flat(q), _flat(k), _flat(v)
    if not is_symbolic(*q.shape, *k.shape, *agents.shape):
        _check_tokens(q, k, v)
        if agents.ndim != 4 or agents.shape[1] < 1 or (agents.shape[0], *agents.shape[2:]) != _outer(q):
            allowed = (q.shape[0], "A", *q.shape[-2:])
            raise ValueError(f"agents has shape {tuple(agents.shape)}; it must be {allowed} with A > 0")
        heads, count = agents.shape[2], agents.shape[1]
        _check_bias("key_bias", key_bias, (heads, count, flat_k.shape[1]))
        _check_bias("query_bias", query_bias, (heads, flat_q.shape[1], count))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out = _run("agent_attention", flat_q, flat_k, flat_v, agents, key_bias, query_bias, scale)
    return _unflat(out, q)


def focused_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    temperature: Tensor | None = None,
    power: float = 3,
    eps: float = 1e-6,
) -> Tensor:
    """Linear attention of positive features that a power pulls to their largest channels.

    A feature is ``(relu(x) + eps) / temperature``, raised to `power` and given its norm over all heads back. Weights
    are products of features over their sum, computed as ``q (k^T v)``. In half precision features are float32.
    Paper: FLatten Transformer, arXiv 2308.00442.

    Args:
        q: Queries (B, *spatial, heads, head_dim).
        k: Keys (B, *spatial_k, heads, head_dim), positions added.
        v: Values (B, *spatial_k, heads, v_dim).
        temperature: Positive divisors (heads, head_dim) of the channels; None for 1.
        power: How much features are sharpened, positive.
        eps: Added to features and to the sums of weights, positive.

    Returns:
        Output (B, *spatial, heads, v_dim).

    Raises:
        ValueError: Shapes don't fit together, or `power` or `eps` is not positive.
        TypeError: q, k and v differ in dtype.
        RuntimeError: The backend asked for can't run the call.
    """
    _check_dtypes(q=q, k=k, v=v)
    for name, value in (("power", power), ("eps", eps)):
        if value <= 0:
            raise ValueError(f"{name}={value} must be positive")
    if not is_symbolic(*q.shape, *k.shape):
        _check_tokens(q, k, v)
        _check_bias("temperature", temperature, tuple(q.shape[-2:]))
    return _unflat(_run("focused_linear_attention", _flat(q), _flat(k), _flat(v), temperature, power, eps), q)


def inline_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """Injective linear attention: weights ``scale / M (<q, k> - mean <q, k>) + 1 / M`` of M keys, which sum to one.

    Computed as ``scale q (mean (k - mean k)^T v) + mean v``, in float32 at least.
    Paper: Bridging the Divide, arXiv 2412.06590.

    Args:
        q: Queries (B, *spatial, heads, head_dim).
        k: Keys (B, *spatial_k, heads, head_dim).
        v: Values (B, *spatial_k, heads, v_dim).
        scale: Factor of the products; None means ``head_dim ** -0.5``.

    Returns:
        Output (B, *spatial, heads, v_dim).

    Raises:
        ValueError: Shapes don't fit together.
        TypeError: q, k and v differ in dtype.
        RuntimeError: The backend asked for can't run the call.
    """
    _check_dtypes(q=q, k=k, v=v)
    if not is_symbolic(*q.shape, *k.shape):
        _check_tokens(q, k, v)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _unflat(_run("inline_attention", _flat(q), _flat(k), _flat(v), scale), q)


def flow_attention(q: Tensor, k: Tensor, v: Tensor, *, eps: float = 1e-6, flow_eps: float = 0.0) -> Tensor:
    """Attention as a flow network in which what leaves each source and what reaches each sink is conserved.

    Capacities are ``sigmoid(q)`` and ``sigmoid(k)``, without a scale. Where every sink takes one in total, sources
    compete by a softmax of what leaves them; where every source gives one, a sigmoid of what reaches a sink gates it.
    Flows are float32 at least.
    Paper: Flowformer, arXiv 2202.06258.

    Args:
        q: Queries, the sinks (B, *spatial, heads, head_dim).
        k: Keys, the sources (B, *spatial_k, heads, head_dim).
        v: Values (B, *spatial_k, heads, v_dim).
        eps: Added to capacities and their sums, channel by channel, not negative.
        flow_eps: Added to flows, not negative; the published vision model has 1e-6.

    Returns:
        Output (B, *spatial, heads, v_dim).

    Raises:
        ValueError: Shapes don't fit together, or `eps` or `flow_eps` is negative.
        TypeError: q, k and v differ in dtype.
        RuntimeError: The backend asked for can't run the call.
    """
    _check_dtypes(q=q, k=k, v=v)
    for name, value in (("eps", eps), ("flow_eps", flow_eps)):
        if value < 0:
            raise ValueError(f"{name}={value} must not be negative")
    if not is_symbolic(*q.shape, *k.shape):
        _check_tokens(q, k, v)
    return _unflat(_run("flow_attention", _flat(q), _flat(k), _flat(v), eps, flow_eps), q)


def _run(op: str, q: Tensor, k: Tensor, v: Tensor, *args: Any) -> Tensor:
    problem = dispatch.Problem(op, q.device.type, q.dtype, q.shape[-1], v.shape[-1], 1)
    return dispatch.run(problem, q, k, v, *args)


def _flat(x: Tensor) -> Tensor:
    """Tokens (B, N, heads, D) of a map."""
    if x.ndim <= 4:
        return x
    # Merging axes of other strides would tie a trace to a batch of more than one image.
    return (x.contiguous() if is_symbolic(*x.shape) else x).flatten(1, -3)


def _unflat(out: Tensor, like: Tensor) -> Tensor:
    return out.reshape(*like.shape[:-1], out.shape[-1])


def _outer(x: Tensor) -> tuple[int, ...]:
    return (x.shape[0], *x.shape[-2:])


def _check_dtypes(**tensors: Tensor) -> None:
    kinds = {x.dtype for x in tensors.values()}
    if len(kinds) > 1 or not next(iter(kinds)).is_floating_point:
        given = ", ".join(f"{name} {x.dtype}" for name, x in tensors.items())
        raise TypeError(f"{', '.join(tensors)} must share one floating-point dtype; they are {given}")


def _check_tokens(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim < 4 or min(x.shape[1:]) < 1:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}; it must be (B, *spatial, heads, channels), none empty"
            )
    if _outer(k) != _outer(q):
        raise ValueError(f"q {tuple(q.shape)} and k {tuple(k.shape)} must agree in batch, heads and head_dim")
    if v.shape[:-1] != k.shape[:-1]:
        raise ValueError(f"v has shape {tuple(v.shape)}; it must be like k {tuple(k.shape)} but for its last axis")


def _check_bias(name: str, bias: Tensor | None, shape: tuple[int, ...]) -> None:
    if bias is not None and tuple(bias.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(bias.shape)}; it must be {shape}")
