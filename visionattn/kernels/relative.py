# SPDX-License-Identifier: Apache-2.0
"""Relative attention: every pixel attends to every pixel, with logits of queries and relative positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.kernels import dispatch, local  # noqa: F401  local registers the backends
from visionattn.kernels.pattern import ceil_div, is_symbolic


def relative_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_tables: Sequence[Tensor],
    *,
    scale: float | None = None,
    scale_rel: bool = False,
) -> Tensor:
    """Attention of every query of a map over all its keys, position entering by one table for rows and one for columns.

    No bias of pixels times pixels is made: relative logits are further channels of queries and keys, one for each row
    and column, and PyTorch's fused attention does the rest. It can be differentiated once.

    Args:
        q: Queries (B, H, W, heads, head_dim).
        k: Keys (B, H, W, heads, head_dim).
        v: Values (B, H, W, heads, v_dim).
        rel_tables: Tables (2 * H - 1, head_dim) and (2 * W - 1, head_dim), shared by the heads:
            <q, rows[key row - query row + H - 1]> + <q, columns[key column - query column + W - 1]> is added to the
            logits.
        scale: Factor of <q, k>; None means ``head_dim ** -0.5``. 0.0 is a value.
        scale_rel: Whether `scale` multiplies the relative logits too.

    Returns:
        Output (B, H, W, heads, v_dim).

    Raises:
        ValueError: Shapes don't fit together.
        TypeError: q, k and v differ in dtype, or are not floating point.
        RuntimeError: The backend asked for can't run the call.

    Paper: Bottleneck Transformers for Visual Recognition, arXiv 2101.11605.
    """
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise TypeError(f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}; they must share one floating-point dtype")
    if not is_symbolic(*q.shape, *k.shape):
        _check_shapes(q, k, v, rel_tables)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    problem = dispatch.Problem("relative_attention", q.device.type, q.dtype, q.shape[-1], v.shape[-1], 2)
    return dispatch.run(problem, q, k, v, tuple(rel_tables), scale, scale_rel)


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, rel_tables: Sequence[Tensor]) -> None:
    if q.ndim != 5 or min(q.shape[1:]) < 1:
        raise ValueError(f"q has shape {tuple(q.shape)}; it must be (B, H, W, heads, head_dim)")
    if k.shape != q.shape:
        raise ValueError(f"k has shape {tuple(k.shape)}; it must be that of q, {tuple(q.shape)}")
    if v.shape[:-1] != k.shape[:-1] or v.shape[-1] < 1:
        raise ValueError(f"v has shape {tuple(v.shape)}; it must be like k {tuple(k.shape)} but for its last axis")
    if len(rel_tables) != 2:
        raise ValueError(f"rel_tables has {len(rel_tables)} tables; it must have one for rows and one for columns")
    for index, (table, side) in enumerate(zip(rel_tables, q.shape[1:3], strict=True)):
        expected = (2 * side - 1, q.shape[-1])
        if table.shape != expected:
            raise ValueError(f"rel_tables[{index}] has shape {tuple(table.shape)}; it must be {expected}")


def relative_attention_torch(
    q: Tensor, k: Tensor, v: Tensor, rel_tables: tuple[Tensor, ...], scale: float, scale_rel: bool
) -> Tensor:
    """`relative_attention` by PyTorch's fused attention over head_dim + H + W channels."""
    height, width = q.shape[1:3]
    rows, columns = (
        _by_offset(table.to(q.dtype), side) for table, side in zip(rel_tables, (height, width), strict=True)
    )
    relative = torch.cat([torch.einsum("bijhd,iyd->bijhy", q, rows), torch.einsum("bijhd,jxd->bijhx", q, columns)], -1)
    queries = torch.cat([q * scale, relative * scale if scale_rel else relative], -1)
    keys = torch.cat([k, _places(k)], -1)
    v_dim = v.shape[-1]
    if not is_symbolic(height, width) and not torch.compiler.is_exporting():
        # Fused attention wants one width for all three, of whole vectors; without it all logits would be made at once.
        widest = ceil_div(max(queries.shape[-1], v_dim), 8) * 8
        queries, keys, v = (F.pad(x, (0, widest - x.shape[-1])) for x in (queries, keys, v))
    queries, keys, v = (x.contiguous().flatten(1, 2).transpose(1, 2) for x in (queries, keys, v))
    out = F.scaled_dot_product_attention(queries, keys, v, scale=1.0)[..., :v_dim]
    return out.transpose(1, 2).reshape(*q.shape[:-1], v_dim)


def _by_offset(table: Tensor, side: int) -> Tensor:
    """Rows of a table (2 * side - 1, D) for each query and key along an axis: (side, side, D)."""
    position = torch.arange(side, device=table.device)
    return table[position - position[:, None] + side - 1]


def _places(k: Tensor) -> Tensor:
    """For each key of a map (B, H, W, heads, D) its row and its column as unit vectors: (B, H, W, heads, H + W)."""
    batch, height, width, heads, _ = k.shape
    y, x = (torch.arange(side, device=k.device) for side in (height, width))
    row = (y[:, None] == y).to(k.dtype)[:, None].expand(height, width, height)
    column = (x[:, None] == x).to(k.dtype).expand(height, width, width)
    return torch.cat([row, column], -1)[None, :, :, None].expand(batch, -1, -1, heads, -1)


dispatch.register_op("torch", "relative_attention", relative_attention_torch)
