# SPDX-License-Identifier: Apache-2.0
"""Aggregated attention: every pixel sees its neighbours and a pooled map of everything in one softmax."""

from __future__ import annotations

from torch import Tensor

from visionattn.kernels import dispatch, local  # noqa: F401  local registers the backends
from visionattn.kernels.aggregated_torch import aggregated_attention_torch
from visionattn.kernels.pattern import is_symbolic

dispatch.register_op("torch", "aggregated_attention", aggregated_attention_torch)


def aggregated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    window_size: int = 3,
    *,
    bias: Tensor,
    pool_bias: Tensor,
    token_q: Tensor,
    tokens: Tensor,
    token_bias: Tensor,
) -> Tensor:
    """Attention of each pixel to the window around it and to the pixels of a pooled map, with one softmax for both.

    Window positions are counted row by row; those beyond the map are not seen. After the softmax the weight of each
    window position gets ``<token_q, token> + token_bias`` added, which learns where to look whatever the keys are. No
    copy of keys and values is made for a query: they are read as shifted views. Logits exist for a bounded number of
    pixels at a time, and again in the backward, which keeps the inputs only. Paper: TransNeXt, arXiv 2311.17132.

    Args:
        q: Queries (B, H, W, heads, head_dim), scaled: logits are plain products.
        k: Keys (B, H, W, heads, head_dim).
        v: Values (B, H, W, heads, v_dim).
        k_pool: Keys of the pooled map (B, n, heads, head_dim).
        v_pool: Values of the pooled map (B, n, heads, v_dim).
        window_size: Side of the window, odd.
        bias: Added to the logits of the window (heads, window_size ** 2).
        pool_bias: Added to those of the pooled map (heads, H, W, n).
        token_q: Queries (B, H, W, heads, head_dim) that meet the tokens.
        tokens: A key for each window position (heads, head_dim, window_size ** 2).
        token_bias: Added to the products with the tokens (heads, window_size ** 2).

    Returns:
        Output (B, H, W, heads, v_dim).

    Raises:
        ValueError: Shapes don't fit together, or the window has no centre.
        TypeError: Queries, keys and values differ in dtype.
        RuntimeError: The backend asked for can't run the call.
    """
    named = {"q": q, "k": k, "v": v, "k_pool": k_pool, "v_pool": v_pool, "token_q": token_q}
    if {x.dtype for x in named.values()} != {q.dtype} or not q.is_floating_point():
        found = ", ".join(f"{name} is {x.dtype}" for name, x in named.items())
        raise TypeError(f"{found}; they must share one floating-point dtype")
    if window_size < 1 or window_size % 2 == 0:
        raise ValueError(f"window_size={window_size} must be odd and positive")
    if not is_symbolic(*q.shape, *k_pool.shape):
        tables = {"bias": bias, "pool_bias": pool_bias, "tokens": tokens, "token_bias": token_bias}
        _check_shapes(named | tables, window_size**2)
    problem = dispatch.Problem("aggregated_attention", q.device.type, q.dtype, q.shape[-1], v.shape[-1], 2)
    maps = (token_q, q, k, v, k_pool, v_pool)
    return dispatch.run(problem, *maps, bias, pool_bias, tokens, token_bias, window_size)


def _check_shapes(x: dict[str, Tensor], positions: int) -> None:
    q, v, pool = x["q"].shape, x["v"].shape, x["k_pool"].shape
    if len(q) != 5 or min(q[1:]) < 1:
        raise ValueError(f"q has shape {tuple(q)}; it must be (B, H, W, heads, head_dim)")
    if len(pool) != 4 or pool[1] < 1:
        raise ValueError(f"k_pool has shape {tuple(pool)}; it must be (B, n, heads, head_dim) with n > 0")
    batch, height, width, heads, head_dim = q
    count, v_dim = pool[1], v[-1]
    expected = {
        "k": q,
        "v": (*q[:4], v_dim),
        "k_pool": (batch, count, heads, head_dim),
        "v_pool": (batch, count, heads, v_dim),
        "token_q": q,
        "bias": (heads, positions),
        "pool_bias": (heads, height, width, count),
        "tokens": (heads, head_dim, positions),
        "token_bias": (heads, positions),
    }
    for name, shape in expected.items():
        if x[name].shape != shape:
            raise ValueError(f"{name} has shape {tuple(x[name].shape)}; it must be {tuple(shape)}")
