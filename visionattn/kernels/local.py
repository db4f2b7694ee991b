# SPDX-License-Identifier: Apache-2.0
"""Local attention: one op for neighborhood, window, shifted-window and halo attention, and its named forms."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, overload

import torch
from torch import Tensor

from visionattn.kernels import dispatch
from visionattn.kernels.local_torch import Inputs, Options, local_attention_torch
from visionattn.kernels.pattern import AxisPattern, LocalPattern, Size, ceil_div, is_symbolic

_HAS_TRITON = find_spec("triton") is not None


def _triton_usable() -> str | None:
    if not _HAS_TRITON:
        return "Triton is not installed"
    if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
        return "there is no CUDA or ROCm device (TRITON_INTERPRET=1 runs the kernels on a CPU, slowly)"
    return None


def _triton_supports(problem: dispatch.Problem) -> str | None:
    from visionattn.kernels import local_triton

    return local_triton.supports(problem)


def _triton(inputs: Inputs, options: Options) -> tuple[Tensor, ...]:
    from visionattn.kernels import local_triton

    return local_triton.local_attention_triton(inputs, options)


dispatch.register_backend(
    dispatch.Backend(
        "torch", usable=lambda: None, supports=lambda problem: None, ops={"local_attention": local_attention_torch}
    )
)
# Triton is imported with the first call that may need it.
dispatch.register_backend(dispatch.Backend("triton", _triton_usable, _triton_supports, {"local_attention": _triton}))


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: LocalPattern,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
    rel_tables: Sequence[Tensor] = (),
    scale_rel: bool = False,
    extra_k: Tensor | None = None,
    extra_v: Tensor | None = None,
    pad_k: Tensor | None = None,
    pad_v: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of every query over the box of keys that `pattern` gives it.

    Tensors may have any strides: views of a packed qkv projection are read in place. Half precision is accumulated
    in float32. Only the inputs are kept for the backward. Under autocast q, k and v are cast to its dtype.

    Args:
        q: Queries (B, *spatial, heads, head_dim), one to three spatial axes.
        k: Keys (B, *spatial, kv_heads, head_dim); kv_heads divides heads (query head h uses key head
            ``h // (heads / kv_heads)``).
        v: Values (B, *spatial, kv_heads, v_dim).
        pattern: Which keys a query sees.
        scale: Factor of <q, k>; None means ``head_dim ** -0.5``. 0.0 is a value.
        bias: Table (heads, 2 * kernel_size - 1 per axis) added to the logits, unscaled. Entry
            ``key - query + kernel_size - 1`` of each axis, counted inside the dilation group; under
            boundary="pad" inside the patch and the block.
        rel_tables: One (2 * kernel_size - 1, head_dim) an axis: <q, table[key - query + kernel_size - 1]> is added to
            the logits, for boundary="pad" (HaloNet's decomposed relative logits; q unscaled).
        scale_rel: Whether `scale` multiplies the relative logits too.
        extra_k: Keys (B, n, kv_heads, head_dim) that every query sees besides its own, in the same softmax.
        extra_v: Their values (B, n, kv_heads, v_dim).
        pad_k: What keys outside the map hold under boundary="pad", (kv_heads, head_dim); None means zeros.
        pad_v: What values outside the map hold, (kv_heads, v_dim); None means zeros.
        return_lse: Also return the natural log-sum-exp of each query's logits.

    Returns:
        Output (B, *spatial, heads, v_dim), spatial sizes of q; with `return_lse` also (B, *spatial, heads) in float32
        (float64 for float64 inputs). Both are differentiable.

    Raises:
        ValueError: Shapes don't fit together or to the pattern, such as a kernel larger than the map.
        TypeError: q, k and v differ in dtype, or are not floating point.
        RuntimeError: The backend asked for can't run the call.
    """
    inputs = Inputs(q, k, v, bias, extra_k, extra_v, pad_k, pad_v, tuple(rel_tables))
    if not q.is_meta and torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
        inputs = Inputs.unpack([_cast(t, dtype) for t in inputs.flat()])._replace(
            bias=bias, rel_tables=inputs.rel_tables
        )
        with torch.autocast(q.device.type, enabled=False):
            return _run(inputs, pattern, scale, scale_rel, return_lse)
    return _run(inputs, pattern, scale, scale_rel, return_lse)


def _run(
    inputs: Inputs, pattern: LocalPattern, scale: float | None, scale_rel: bool, return_lse: bool
) -> Tensor | tuple[Tensor, Tensor]:
    q, v = inputs.q, inputs.v
    _check_dtypes(inputs)
    shapes = tuple(None if t is None else tuple(t.shape) for t in inputs.flat())
    if not is_symbolic(*q.shape, *inputs.k.shape):
        check = _check_shapes.__wrapped__ if torch.compiler.is_compiling() else _check_shapes
        check(pattern, *shapes)
    options = Options(pattern, q.shape[-1] ** -0.5 if scale is None else scale, scale_rel, return_lse)
    problem = dispatch.Problem("local_attention", q.device.type, q.dtype, q.shape[-1], v.shape[-1], q.ndim - 3)
    results = dispatch.run(problem, inputs, options)
    return results if return_lse else results[0]


def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel_size: Size,
    *,
    stride: Size = 1,
    dilation: Size = 1,
    is_causal: bool | Sequence[bool] = False,
    scale: float | None = None,
    bias: Tensor | None = None,
    extra_k: Tensor | None = None,
    extra_v: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of every query over its `kernel_size` nearest keys along each axis.

    At the borders the window is shifted inside, never cut. Papers: arXiv 2204.07143 (neighborhood attention),
    2209.15001 (dilated), 2504.16922 (strided).

    Args:
        q: Queries (B, *spatial, heads, head_dim), one to three spatial axes.
        k: Keys (B, *spatial, kv_heads, head_dim).
        v: Values (B, *spatial, kv_heads, v_dim).
        kernel_size: Keys per axis, even or odd.
        stride: Neighbouring queries that share the window of their centre.
        dilation: Distance between the keys of a window.
        is_causal: Hide keys after the query, per axis.
        scale: Factor of <q, k>; None means ``head_dim ** -0.5``.
        bias: Relative position bias (heads, 2 * kernel_size - 1 per axis), indexed by key minus query.
        extra_k: Keys (B, n, kv_heads, head_dim) that every query sees too.
        extra_v: Their values (B, n, kv_heads, v_dim).
        return_lse: Also return the log-sum-exp of each query's logits.

    Returns:
        Output (B, *spatial, heads, v_dim); with `return_lse` also (B, *spatial, heads).

    Raises:
        ValueError: ``kernel_size * dilation`` exceeds the map, or shapes don't fit together.
        TypeError: q, k and v differ in dtype.
    """
    pattern = _pattern(kernel_size, stride=stride, dilation=dilation, causal=is_causal)
    return local_attention(
        q, k, v, pattern, scale=scale, bias=bias, extra_k=extra_k, extra_v=extra_v, return_lse=return_lse
    )


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window_size: Size,
    *,
    shift: Size = 0,
    scale: float | None = None,
    bias: Tensor | None = None,
    pad_k: Tensor | None = None,
    pad_v: Tensor | None = None,
    extra_k: Tensor | None = None,
    extra_v: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention inside windows that do not overlap, on a cyclically shifted map if `shift` is not 0 (Swin).

    The map is extended at the end of each axis to whole windows; the new keys hold `pad_k` and `pad_v` and take part in
    the softmax. Pixels that only the shift made neighbours don't see each other. Paper: arXiv 2103.14030.

    Args:
        q: Queries (B, *spatial, heads, head_dim).
        k: Keys (B, *spatial, kv_heads, head_dim).
        v: Values (B, *spatial, kv_heads, v_dim).
        window_size: Side of the windows.
        shift: Pixels by which the map is rolled, below the window size.
        scale: Factor of <q, k>; None means ``head_dim ** -0.5``.
        bias: Relative position bias (heads, 2 * window_size - 1 per axis), indexed by key minus query. Swin's own
            table, ((2w-1)^2, heads) by query minus key, is ``table.T.reshape(heads, 2w-1, 2w-1).flip(1, 2)``.
        pad_k: Keys of the extension (kv_heads, head_dim): the key part of a qkv bias, where the extension was made
            before the projection. None means zeros.
        pad_v: Values of the extension (kv_heads, v_dim); None means zeros.
        extra_k: Keys (B, n, kv_heads, head_dim) that every query sees too.
        extra_v: Their values (B, n, kv_heads, v_dim).
        return_lse: Also return the log-sum-exp of each query's logits.

    Returns:
        Output (B, *spatial, heads, v_dim); with `return_lse` also (B, *spatial, heads).

    Raises:
        ValueError: The shift is not below the window size, or shapes don't fit together.
        TypeError: q, k and v differ in dtype.
    """
    pattern = _pattern(window_size, stride=window_size, boundary="pad", shift=shift)
    return local_attention(
        q, k, v, pattern, scale=scale, bias=bias, pad_k=pad_k, pad_v=pad_v, extra_k=extra_k, extra_v=extra_v,
        return_lse=return_lse,
    )  # fmt: skip


def halo_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_size: Size,
    halo_size: Size,
    *,
    query_stride: Size = 1,
    rel_tables: Sequence[Tensor] = (),
    scale_rel: bool = False,
    scale: float | None = None,
    bias: Tensor | None = None,
    extra_k: Tensor | None = None,
    extra_v: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of each block of pixels over the block and a halo around it (HaloNet).

    Keys outside the map are zeros that take part in the softmax. Paper: arXiv 2103.12731.

    Args:
        q: Queries (B, *query_spatial, heads, head_dim); ``block_size / query_stride`` a block and axis.
        k: Keys (B, *spatial, kv_heads, head_dim).
        v: Values (B, *spatial, kv_heads, v_dim).
        block_size: Side of the blocks in pixels of k.
        halo_size: Pixels added on each side; a window has ``block_size + 2 * halo_size``.
        query_stride: Pixels of k for one of q along an axis: 2 where the queries were taken at stride 2.
        rel_tables: One (2 * window - 1, head_dim) an axis (rows first): relative logits
            <q, table[key in window - query in block + window - 1]>.
        scale_rel: Whether `scale` multiplies the relative logits too.
        scale: Factor of <q, k>; None means ``head_dim ** -0.5``.
        bias: Relative position bias (heads, 2 * window - 1 per axis).
        extra_k: Keys (B, n, kv_heads, head_dim) that every query sees too.
        extra_v: Their values (B, n, kv_heads, v_dim).
        return_lse: Also return the log-sum-exp of each query's logits.

    Returns:
        Output (B, *query_spatial, heads, v_dim); with `return_lse` also (B, *query_spatial, heads).

    Raises:
        ValueError: A size is out of range, or shapes don't fit together.
        TypeError: q, k and v differ in dtype.
    """
    rank = q.ndim - 3
    blocks, halos = _per_axis("block_size", block_size, rank), _per_axis("halo_size", halo_size, rank)
    window = tuple(block + 2 * halo for block, halo in zip(blocks, halos, strict=True))
    pattern = _pattern(window, stride=blocks, boundary="pad", query_stride=query_stride)
    return local_attention(
        q, k, v, pattern, scale=scale, bias=bias, rel_tables=rel_tables, scale_rel=scale_rel, extra_k=extra_k,
        extra_v=extra_v, return_lse=return_lse,
    )  # fmt: skip


_cached_pattern = lru_cache(maxsize=1024, typed=True)(LocalPattern)


def _pattern(kernel_size: Size, **fields: Any) -> LocalPattern:
    """`LocalPattern`, made once: its checks cost more than a small map's attention should."""
    if torch.compiler.is_compiling():
        return LocalPattern(kernel_size, **fields)
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    return _cached_pattern(tuple(kernel_size) if isinstance(kernel_size, list) else kernel_size, **values)


def _per_axis(name: str, value: Size, rank: int) -> tuple[int, ...]:
    values = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(values) != rank or min(values, default=0) < 0:
        raise ValueError(f"{name}={value} is not allowed; use one size of at least 0, or one for each of {rank} axes")
    return values


@overload
def _cast(x: Tensor, dtype: torch.dtype) -> Tensor: ...
@overload
def _cast(x: None, dtype: torch.dtype) -> None: ...
def _cast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return x.to(dtype) if x is not None and x.dtype == torch.float32 else x


def _check_dtypes(x: Inputs) -> None:
    if not (x.q.dtype == x.k.dtype == x.v.dtype) or not x.q.is_floating_point():
        raise TypeError(
            f"q, k and v are {x.q.dtype}, {x.k.dtype} and {x.v.dtype}; they must share one floating-point dtype"
        )


def _expect(name: str, shape: tuple[int, ...] | None, expected: tuple[int, ...], of: str) -> None:
    if shape is not None and shape != expected:
        raise ValueError(f"{name} has shape {shape}; it must be {expected}, {of}")


@lru_cache(maxsize=1024)
def _check_shapes(
    pattern: LocalPattern,
    q: tuple[int, ...],
    k: tuple[int, ...],
    v: tuple[int, ...],
    bias: tuple[int, ...] | None,
    extra_k: tuple[int, ...] | None,
    extra_v: tuple[int, ...] | None,
    pad_k: tuple[int, ...] | None,
    pad_v: tuple[int, ...] | None,
    *rel_tables: tuple[int, ...],
) -> None:
    """Raise ValueError unless the shapes fit together and to the pattern."""
    if not 4 <= len(q) <= 6:
        raise ValueError(f"q has shape {q}; it must be (B, *spatial, heads, head_dim) with one to three spatial axes")
    rank, (batch, *size, kv_heads, _) = len(q) - 3, k
    if len(k) != len(q) or k[0] != q[0] or k[-1] != q[-1]:
        raise ValueError(f"q {q} and k {k} must agree in batch, number of axes and head_dim")
    _expect("v", v[:-1], k[:-1], "like k but for its last axis")
    if min(q[1:]) < 1 or min(k[1:]) < 1 or v[-1] < 1:
        raise ValueError(f"q {q}, k {k} and v {v} must not have empty axes, but for the batch")
    if q[-2] % kv_heads:
        raise ValueError(f"k has {kv_heads} heads, which do not divide the {q[-2]} heads of q")
    axes = pattern.axes(rank)
    for index, (axis, length, queries) in enumerate(zip(axes, size, q[1:-2], strict=True)):
        _check_axis(index, axis, length, queries, size)
    tables = tuple(2 * axis.kernel_size - 1 for axis in axes)
    _expect("bias", bias, (q[-2], *tables), "(heads, 2 * kernel_size - 1 per axis)")
    if rel_tables and pattern.boundary != "pad":
        raise ValueError("rel_tables need a pattern with boundary='pad'")
    if rel_tables and len(rel_tables) != rank:
        raise ValueError(f"rel_tables has {len(rel_tables)} tables; it must have one for each of {rank} axes")
    for index, table in enumerate(rel_tables):
        _expect(f"rel_tables[{index}]", table, (tables[index], q[-1]), "(2 * kernel_size - 1, head_dim)")
    if (extra_k is None) != (extra_v is None):
        raise ValueError("extra_k and extra_v must be given together")
    if extra_k is not None:
        count = extra_k[1] if len(extra_k) == 4 else 0
        _expect("extra_k", extra_k, (batch, count, kv_heads, q[-1]), "(B, n, kv_heads, head_dim)")
        _expect("extra_v", extra_v, (batch, count, kv_heads, v[-1]), "(B, n, kv_heads, v_dim)")
    if pattern.boundary != "pad" and (pad_k is not None or pad_v is not None):
        raise ValueError("pad_k and pad_v need a pattern with boundary='pad'")
    _expect("pad_k", pad_k, (kv_heads, q[-1]), "(kv_heads, head_dim)")
    _expect("pad_v", pad_v, (kv_heads, v[-1]), "(kv_heads, v_dim)")


def _by(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def _check_axis(index: int, axis: AxisPattern, length: int, queries: int, size: Sequence[int]) -> None:
    kernel, dilation, stride = axis.kernel_size, axis.dilation, axis.stride
    if axis.boundary == "pad":
        blocks, block = ceil_div(length, stride), axis.block
        if queries != length if axis.query_stride == 1 else ceil_div(queries, block) != blocks:
            raise ValueError(
                f"q has {queries} positions along axis {index}, k has {length}; {blocks} blocks of {stride} keys with "
                f"query_stride={axis.query_stride} take {length // axis.query_stride}"
            )
        return
    if queries != length:
        raise ValueError(f"q has {queries} positions along axis {index}, k has {length}; they must be equal")
    if kernel > length:
        raise ValueError(
            f"kernel_size={kernel} exceeds axis {index} of the {_by(size)} map; use at most {length}, or boundary='pad'"
        )
    if kernel * dilation > length:
        raise ValueError(
            f"dilation={dilation} leaves {length // dilation} positions to kernel_size={kernel} along axis {index} of "
            f"the {_by(size)} map; use a dilation of at most {length // kernel}"
        )
