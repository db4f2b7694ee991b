# SPDX-License-Identifier: Apache-2.0
"""Selected attention: every token is answered by the heads that were chosen for it, and by no others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.kernels import dispatch, local  # noqa: F401  local registers the backends


def selected_attention(
    q: Tensor, k: Tensor, v: Tensor, selected: Tensor, *, scale: float | None = None, bias: Tensor | None = None
) -> Tensor:
    """Softmax attention of the queries that chose a head over all keys of that head; zeros for the others.

    The chosen queries of each head are brought together, so that a head costs as much as the largest number of queries
    that any head of any image has, not as all of them. How many these are is read from the data: the op serves where
    shapes may follow values, which tracing and export do not allow. Paper: MoH, arXiv 2410.11842.

    Args:
        q: Queries (B, N, heads, head_dim).
        k: Keys (B, M, heads, head_dim).
        v: Values (B, M, heads, v_dim).
        selected: Which tokens chose which heads (B, N, heads), bool.
        scale: Factor of <q, k>; None means ``head_dim ** -0.5``.
        bias: Added to the logits (heads, N, M).

    Returns:
        Output (B, N, heads, v_dim).

    Raises:
        ValueError: Shapes don't fit together.
        TypeError: q, k and v differ in dtype, or `selected` is not bool.
        RuntimeError: The backend asked for can't run the call.
    """
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise TypeError(f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}; they must share one floating-point dtype")
    if selected.dtype != torch.bool:
        raise TypeError(f"selected is {selected.dtype}; it must be torch.bool")
    _check_shapes(q, k, v, selected, bias)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    problem = dispatch.Problem("selected_attention", q.device.type, q.dtype, q.shape[-1], v.shape[-1], 1)
    return dispatch.run(problem, q, k, v, selected, bias, scale)


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, selected: Tensor, bias: Tensor | None) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4 or x.shape[1] < 1:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be (B, tokens, heads, channels)")
    batch, tokens, heads, head_dim = q.shape
    keys = k.shape[1]
    expected = {"k": (batch, keys, heads, head_dim), "v": (batch, keys, heads, v.shape[-1]),
                "selected": (batch, tokens, heads), "bias": (heads, tokens, keys)}  # fmt: skip
    for name, given in {"k": k, "v": v, "selected": selected, "bias": bias}.items():
        if given is not None and given.shape != expected[name]:
            raise ValueError(f"{name} has shape {tuple(given.shape)}; it must be {expected[name]}")


def selected_attention_torch(
    q: Tensor, k: Tensor, v: Tensor, selected: Tensor, bias: Tensor | None, scale: float
) -> Tensor:
    """Output (B, N, heads, V); see `selected_attention`."""
    out = v.new_zeros(*q.shape[:3], v.shape[-1])
    chosen = selected.transpose(1, 2)
    most = int(chosen.sum(-1).max())
    if most == 0:
        return out
    # Those who chose a head come first; where another head has more of them, others fill up and are left out below.
    places, order = chosen.to(torch.uint8).topk(most, -1)
    image, head = (torch.arange(n, device=q.device) for n in (q.shape[0], q.shape[2]))
    # Whole rows are read, which is much faster than gathering their elements one by one.
    at = (image[:, None, None], order, head[:, None])
    rows = None if bias is None else bias[head[:, None], order]
    found = F.scaled_dot_product_attention(q[at], k.transpose(1, 2), v.transpose(1, 2), attn_mask=rows, scale=scale)
    return out.index_put(at, found * places[..., None])


dispatch.register_op("torch", "selected_attention", selected_attention_torch)
