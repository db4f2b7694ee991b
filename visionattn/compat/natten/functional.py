# SPDX-License-Identifier: Apache-2.0
"""NATTEN's functions. Fused ones take maps with heads last (B, *spatial, heads, D), unfused ones with heads first."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.compat.natten import _unfused
from visionattn.kernels import LocalPattern, neighborhood_attention
from visionattn.kernels.pattern import Size, is_symbolic

TUNING = frozenset({
    "attention_kwargs", "backend", "backward_kv_splits", "backward_kv_tile_shape", "backward_kv_tile_size",
    "backward_q_tile_shape", "backward_q_tile_size", "backward_use_pt_reduction", "deterministic", "kernel_schedule",
    "kv_tile_shape", "kv_tile_size", "q_tile_shape", "q_tile_size", "run_persistent_kernel", "tiling_config",
    "tiling_config_backward", "torch_compile",
})  # fmt: skip
VARLEN = ("seqlens_Q", "seqlens_KV", "cumulative_seqlen_Q", "cumulative_seqlen_KV", "max_seqlen_Q", "max_seqlen_KV")


def check_tuning(tuning: dict[str, Any]) -> None:
    """Raise TypeError for an argument that is none of NATTEN's tuning knobs, whose values don't matter here."""
    unknown = sorted(set(tuning) - TUNING)
    if unknown:
        raise TypeError(f"{unknown[0]}={tuning[unknown[0]]!r} is no argument; beside the documented ones only the "
                        f"tuning arguments {', '.join(sorted(TUNING))} are accepted, and ignored")  # fmt: skip


def _check_tensors(**tensors: Tensor | None) -> None:
    for name, x in tensors.items():
        if x is None:
            continue
        if x.is_nested:
            raise NotImplementedError(f"{name} is a nested tensor; call the op once for each of its tensors")
        if x.is_floating_point() and x.dtype.itemsize == 1:
            raise NotImplementedError(f"{name} is {x.dtype}; 8-bit floats are not supported, use torch.bfloat16")


def _for_rank(op: Callable[..., Any], rank: int, name: str) -> Callable[..., Any]:
    """`op` under NATTEN's name for maps with `rank` spatial axes."""
    parameters = inspect.signature(op).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    layout = "(B, *spatial, heads, head_dim)" if op is neighborhood_attention_generic else "(B, heads, *spatial, ...)"

    @functools.wraps(op)
    def ranked(*args: Any, **kwargs: Any) -> Any:
        if len(args) > len(positional):
            raise TypeError(f"{name} takes {', '.join(positional)} by position; give the other arguments by name, "
                            "since NATTEN's versions order them differently")  # fmt: skip
        first = args[0] if args else kwargs.get(positional[0])
        if isinstance(first, Tensor) and not first.is_nested and first.ndim != rank + 3:
            raise ValueError(f"{positional[0]} has shape {tuple(first.shape)}; {name} takes {layout} with "
                             f"{rank} spatial {'axis' if rank == 1 else 'axes'}")  # fmt: skip
        return op(*args, **kwargs)

    ranked.__name__ = ranked.__qualname__ = name
    return ranked


# --- fused ------------------------------------------------------------------------------------------------------


def neighborhood_attention_generic(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Size,
    *,
    stride: Size = 1,
    dilation: Size = 1,
    is_causal: bool | Sequence[bool] = False,
    rpb: Tensor | None = None,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    return_lse: bool = False,
    **tuning: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Neighborhood attention, `na1d`, `na2d` and `na3d` in one; options of all NATTEN releases at once.

    Args:
        query: (B, *spatial, heads, head_dim), one to three spatial axes.
        key: (B, *spatial, kv_heads, head_dim); kv_heads divides heads.
        value: (B, *spatial, kv_heads, v_dim).
        kernel_size: Keys per axis.
        stride: Neighbouring queries that share one window (0.20 and later).
        dilation: Distance between the keys of a window.
        is_causal: Hide keys after the query, per axis.
        rpb: Relative position bias (heads, 2 * kernel_size - 1 per axis), indexed by key minus query, differentiable
            (to 0.17).
        scale: Factor of the products; None and, as in NATTEN, 0 mean ``head_dim ** -0.5``.
        additional_keys: Keys (B, n, kv_heads, head_dim) that every query sees too.
        additional_values: Their values (B, n, kv_heads, v_dim).
        return_lse: Also return the natural log-sum-exp of each query's logits; differentiable.
        **tuning: NATTEN's tuning arguments (backend, tile shapes, schedules, ...): accepted, and ignored.

    Returns:
        Output (B, *spatial, heads, v_dim); with `return_lse` also (B, *spatial, heads), in float32 at least.

    Raises:
        ValueError: Shapes don't fit together, or ``kernel_size * dilation`` exceeds the map.
        TypeError: Dtypes differ, or an argument is unknown.
        NotImplementedError: A tensor is nested or of 8-bit floats.

    Papers: arXiv 2204.07143, 2209.15001 (dilated), 2403.04690 (causal), 2504.16922 (strided).
    """
    check_tuning(tuning)
    _check_tensors(query=query, key=key, value=value, additional_keys=additional_keys,
                   additional_values=additional_values)  # fmt: skip
    return neighborhood_attention(
        query, key, value, kernel_size, stride=stride, dilation=dilation, is_causal=is_causal, scale=scale or None,
        bias=rpb, extra_k=additional_keys, extra_v=additional_values, return_lse=return_lse,
    )  # fmt: skip


na1d, na2d, na3d = (_for_rank(neighborhood_attention_generic, rank, f"na{rank}d") for rank in (1, 2, 3))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    return_lse: bool = False,
    **options: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Plain attention of every query over all keys.

    Args:
        query: (B, queries, heads, head_dim).
        key: (B, keys, kv_heads, head_dim); kv_heads divides heads.
        value: (B, keys, kv_heads, v_dim).
        is_causal: Hide keys after the query.
        scale: Factor of the products; None and, as in NATTEN, 0 mean ``head_dim ** -0.5``.
        return_lse: Also return the natural log-sum-exp of each query's logits; differentiable.
        **options: NATTEN's tuning arguments: accepted, and ignored.

    Returns:
        Output (B, queries, heads, v_dim); with `return_lse` also (B, queries, heads), in float32 at least.

    Raises:
        ValueError: Shapes don't fit together.
        TypeError: Dtypes differ, or an argument is unknown.
        NotImplementedError: Packed sequences, a causal mask over another number of keys than queries, nested tensors,
            8-bit floats.
    """
    for name in VARLEN:
        if options.pop(name, None) is not None:
            raise NotImplementedError(f"{name}: packed sequences are not supported; call attention for each sequence")
    check_tuning(options)
    _check_tensors(query=query, key=key, value=value)
    if query.ndim != 4 or key.ndim != 4:
        raise ValueError(f"query {tuple(query.shape)} and key {tuple(key.shape)} must be (B, tokens, heads, head_dim)")
    scale = scale or query.shape[-1] ** -0.5
    if query.shape[1] == key.shape[1]:  # the neighbourhood that is the whole sequence
        return neighborhood_attention(
            query, key, value, query.shape[1], is_causal=is_causal, scale=scale, return_lse=return_lse
        )
    if is_causal:
        raise NotImplementedError(f"is_causal with {query.shape[1]} queries and {key.shape[1]} keys is not supported; "
                                  "use as many keys as queries")  # fmt: skip
    if key.shape[0] != query.shape[0] or key.shape[3] != query.shape[3] or query.shape[2] % key.shape[2]:
        raise ValueError(f"query {tuple(query.shape)} and key {tuple(key.shape)} must agree in batch and head_dim, and "
                         "the heads of key divide those of query")  # fmt: skip
    if value.shape[:-1] != key.shape[:-1]:
        raise ValueError(f"value {tuple(value.shape)} must be like key {tuple(key.shape)} but for its last axis")
    return _cross_attention(query, key, value, scale, return_lse)


def _cross_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, return_lse: bool
) -> Tensor | tuple[Tensor, Tensor]:
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if not return_lse:
        return F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True).transpose(1, 2)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    logits = ((q * scale) @ k.transpose(-2, -1)).to(torch.promote_types(q.dtype, torch.float32))
    out = logits.softmax(-1).to(v.dtype) @ v
    return out.transpose(1, 2), logits.logsumexp(-1).transpose(1, 2)


def merge_attentions(
    outputs: Sequence[Tensor],
    lse_tensors: Sequence[Tensor],
    torch_compile: bool = False,
    use_autograd_fix: bool = True,
) -> tuple[Tensor, Tensor]:
    """The attention over the union of disjoint sets of keys, from the attentions over each.

    Plain differentiable PyTorch: the gradients, through the log-sum-exps too, are those of one joint softmax.

    Args:
        outputs: At least two outputs (..., heads, D) of the same queries.
        lse_tensors: Their log-sum-exps (..., heads).
        torch_compile: Ignored.
        use_autograd_fix: Ignored: the gradients are exact as they are.

    Returns:
        Output (..., heads, D) in the dtype of the first one, and log-sum-exp (..., heads), in float32 at least.

    Raises:
        ValueError: Fewer than two outputs, another number of log-sum-exps, or shapes that don't fit together.
    """
    if len(outputs) < 2 or len(outputs) != len(lse_tensors):
        raise ValueError(f"outputs has {len(outputs)} tensors and lse_tensors {len(lse_tensors)}; give two or more of "
                         "each, as many of one as of the other")  # fmt: skip
    shape = outputs[0].shape
    for i, (out, lse) in enumerate(zip(outputs, lse_tensors, strict=True)):
        if out.shape != shape or lse.shape != shape[:-1]:
            raise ValueError(f"outputs[{i}] {tuple(out.shape)} and lse_tensors[{i}] {tuple(lse.shape)} must be "
                             f"{tuple(shape)} and {tuple(shape[:-1])}")  # fmt: skip
    dtype = torch.promote_types(outputs[0].dtype, torch.float32)
    lses = torch.stack([lse.to(dtype) for lse in lse_tensors])
    weights = lses.softmax(0).unsqueeze(-1)
    merged = sum(weight * out for weight, out in zip(weights, outputs, strict=True))
    return merged.to(outputs[0].dtype), lses.logsumexp(0)  # type: ignore[union-attr]


# --- unfused ----------------------------------------------------------------------------------------------------


def _pattern(size: Sequence[int], kernel_size: Size, dilation: Size, is_causal: bool | Sequence[bool]) -> LocalPattern:
    """The checked pattern of a map."""
    pattern = LocalPattern(kernel_size, dilation=dilation, causal=is_causal)
    for index, (axis, length) in enumerate(zip(pattern.axes(len(size)), size, strict=True)):
        if not is_symbolic(length) and axis.kernel_size * axis.dilation > length:
            raise ValueError(f"kernel_size={axis.kernel_size} times dilation={axis.dilation} exceeds axis {index} of "
                             f"the map {tuple(size)}; pad it to {axis.kernel_size * axis.dilation}")  # fmt: skip
    return pattern


def _as_matmul(**tensors: Tensor | None) -> list[Tensor | None]:
    """Floating-point tensors of one dtype: autocast's, where it is on."""
    _check_tensors(**tensors)
    given = {name: x for name, x in tensors.items() if x is not None}
    device = next(iter(given.values())).device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        given = {name: x.to(dtype) if x.dtype == torch.float32 else x for name, x in given.items()}
    if len({x.dtype for x in given.values()}) > 1 or not all(x.is_floating_point() for x in given.values()):
        found = ", ".join(f"{name} {x.dtype}" for name, x in given.items())
        raise TypeError(f"{found}: they must share one floating-point dtype")
    return [given.get(name) for name in tensors]


def _expect(name: str, x: Tensor | None, expected: Sequence[int], of: str) -> None:
    if x is not None and tuple(x.shape) != tuple(expected):
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be {tuple(expected)}, {of}")


def _count(additional: Tensor | None) -> int:
    return 0 if additional is None or additional.ndim != 4 else additional.shape[2]


def neighborhood_qk(
    query: Tensor,
    key: Tensor,
    kernel_size: Size,
    dilation: Size = 1,
    *,
    additional_keys: Tensor | None = None,
    is_causal: bool | Sequence[bool] = False,
    rpb: Tensor | None = None,
) -> Tensor:
    """Products of each query with the keys of its neighbourhood: the logits before the softmax (to 0.17).

    Args:
        query: (B, heads, *spatial, head_dim), one to three spatial axes; scaled by the caller.
        key: Like query.
        kernel_size: Keys per axis, even or odd.
        dilation: Distance between the keys of a window.
        additional_keys: Keys (B, heads, n, head_dim) that every query sees too.
        is_causal: Keys after the query, per axis, get minus infinity.
        rpb: Relative position bias (heads, 2 * kernel_size - 1 per axis), indexed by key minus query, added unscaled.

    Returns:
        (B, heads, *spatial, product of the kernel sizes + n): the neighbourhood row-major, then the additional keys.

    Raises:
        ValueError: Shapes don't fit together, or ``kernel_size * dilation`` exceeds the map.
        TypeError: Dtypes differ.
        NotImplementedError: A tensor is nested or of 8-bit floats.
    """
    query, key, additional_keys = _as_matmul(query=query, key=key, additional_keys=additional_keys)  # type: ignore[assignment]
    batch, heads, *size, dim = query.shape
    pattern = _pattern(size, kernel_size, dilation, is_causal)
    _expect("key", key, query.shape, "like query")
    _expect("additional_keys", additional_keys, (batch, heads, _count(additional_keys), dim),
            "(B, heads, n, head_dim)")  # fmt: skip
    table = (2 * axis.kernel_size - 1 for axis in pattern.axes(len(size)))
    _expect("rpb", rpb, (heads, *table), "(heads, 2 * kernel_size - 1 per axis)")
    return _unfused.neighbourhood_logits(query, key, pattern, rpb, additional_keys)


def neighborhood_qkrpb(
    query: Tensor,
    key: Tensor,
    rpb: Tensor | None,
    kernel_size: Size,
    dilation: Size = 1,
    *,
    additional_keys: Tensor | None = None,
    is_causal: bool | Sequence[bool] = False,
) -> Tensor:
    """`neighborhood_qk` with the relative position bias third, as the names before 0.17 have it."""
    return neighborhood_qk(
        query, key, kernel_size, dilation, additional_keys=additional_keys, is_causal=is_causal, rpb=rpb
    )


def neighborhood_qk_with_bias(
    query: Tensor, key: Tensor, bias: Tensor | None, kernel_size: Size, dilation: Size = 1, **options: Any
) -> Tensor:
    """`neighborhood_qkrpb` with its table named `bias`."""
    return neighborhood_qkrpb(query, key, bias, kernel_size, dilation, **options)


def neighborhood_av(
    attn: Tensor,
    value: Tensor,
    kernel_size: Size,
    dilation: Size = 1,
    *,
    additional_values: Tensor | None = None,
    is_causal: bool | Sequence[bool] = False,
) -> Tensor:
    """Sum of the values of each query's neighbourhood, weighted by `attn` (to 0.17).

    Args:
        attn: Weights (B, heads, *spatial, product of the kernel sizes + n) in the order of `neighborhood_qk`.
        value: (B, heads, *spatial, v_dim), one to three spatial axes.
        kernel_size: Keys per axis, even or odd.
        dilation: Distance between the keys of a window.
        additional_values: Values (B, heads, n, v_dim) of the additional keys.
        is_causal: Weights of keys after the query, per axis, don't count.

    Returns:
        (B, heads, *spatial, v_dim).

    Raises:
        ValueError: Shapes don't fit together, or ``kernel_size * dilation`` exceeds the map.
        TypeError: Dtypes differ.
        NotImplementedError: A tensor is nested or of 8-bit floats.
    """
    attn, value, additional_values = _as_matmul(attn=attn, value=value, additional_values=additional_values)  # type: ignore[assignment]
    batch, heads, *size, dim = value.shape
    pattern = _pattern(size, kernel_size, dilation, is_causal)
    far = _count(additional_values)
    _expect("additional_values", additional_values, (batch, heads, far, dim), "(B, heads, n, v_dim)")
    near = math.prod([axis.kernel_size for axis in pattern.axes(len(size))])
    _expect("attn", attn, (*value.shape[:-1], near + far), "(B, heads, *spatial, product of the kernel sizes + n)")
    return _unfused.neighbourhood_sum(attn, value, pattern, additional_values)


na1d_qk, na2d_qk, na3d_qk = (_for_rank(neighborhood_qk, rank, f"na{rank}d_qk") for rank in (1, 2, 3))
na1d_av, na2d_av, na3d_av = (_for_rank(neighborhood_av, rank, f"na{rank}d_av") for rank in (1, 2, 3))
na1d_qk_with_bias, na2d_qk_with_bias, na3d_qk_with_bias = (
    _for_rank(neighborhood_qk_with_bias, rank, f"na{rank}d_qk_with_bias") for rank in (1, 2, 3)
)
natten1dqk, natten2dqk, natten3dqk = (_for_rank(neighborhood_qk, rank, f"natten{rank}dqk") for rank in (1, 2, 3))
natten1dqkrpb, natten2dqkrpb, natten3dqkrpb = (
    _for_rank(neighborhood_qkrpb, rank, f"natten{rank}dqkrpb") for rank in (1, 2, 3)
)
natten1dav, natten2dav, natten3dav = (_for_rank(neighborhood_av, rank, f"natten{rank}dav") for rank in (1, 2, 3))
