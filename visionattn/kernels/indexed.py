# SPDX-License-Identifier: Apache-2.0
"""Indexed attention: every query of every head attends to a list of keys of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from visionattn.kernels import dispatch, local  # noqa: F401  local registers the backends

# Numbers of keys and values that one chunk gathers: 16 MiB of float32.
CHUNK = 1 << 22


def indexed_attention(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, *, scale: float | None = None) -> Tensor:
    """Softmax attention of each query over the keys that `keys` lists for it.

    Neither logits nor masks of all pairs exist: keys and values are gathered for some queries at a time. Paper:
    Sparsifiner, arXiv 2303.13755.

    Args:
        q: Queries (B, N, heads, head_dim).
        k: Keys (B, M, heads, head_dim).
        v: Values (B, M, heads, v_dim).
        keys: Keys that each query sees (B, N, heads, n), int64; their order does not matter, one listed twice counts
            twice.
        scale: Factor of <q, k>; None means ``head_dim ** -0.5``.

    Returns:
        Output (B, N, heads, v_dim).

    Raises:
        ValueError: Shapes don't fit together.
        TypeError: q, k and v differ in dtype, or `keys` is not int64.
        RuntimeError: The backend asked for can't run the call.
    """
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise TypeError(f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}; they must share one floating-point dtype")
    if keys.dtype != torch.int64:
        raise TypeError(f"keys is {keys.dtype}; it must be torch.int64")
    for name, x in (("q", q), ("k", k), ("v", v), ("keys", keys)):
        if x.ndim != 4 or x.shape[1] < 1:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it must have 4 axes, the tokens on the second")
    batch, tokens, heads, head_dim = q.shape
    expected = {"k": (batch, k.shape[1], heads, head_dim), "v": (*k.shape[:3], v.shape[-1]),
                "keys": (batch, tokens, heads, keys.shape[-1])}  # fmt: skip
    for name, x in (("k", k), ("v", v), ("keys", keys)):
        if x.shape != expected[name]:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be {expected[name]}")
    scale = head_dim**-0.5 if scale is None else scale
    problem = dispatch.Problem("indexed_attention", q.device.type, q.dtype, head_dim, v.shape[-1], 1)
    return dispatch.run(problem, q, k, v, keys, scale)


def indexed_attention_torch(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Output (B, N, heads, V); see `indexed_attention`."""
    batch, tokens, heads, _ = q.shape
    image = torch.arange(batch, device=q.device)[:, None, None, None]
    head = torch.arange(heads, device=q.device)[:, None]
    rows = max(1, CHUNK // (batch * heads * keys.shape[-1] * (q.shape[-1] + v.shape[-1])))
    parts = []
    for first in range(0, tokens, rows):
        at = (image, keys[:, first : first + rows], head)
        logits = torch.einsum("bnhd,bnhkd->bnhk", q[:, first : first + rows] * scale, k[at])
        parts.append(torch.einsum("bnhk,bnhkd->bnhd", logits.softmax(-1).to(v.dtype), v[at]))
    return torch.cat(parts, 1)


dispatch.register_op("torch", "indexed_attention", indexed_attention_torch)
