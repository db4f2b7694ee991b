# SPDX-License-Identifier: Apache-2.0
"""Deformable attention: keys and values are read where a network points, not at every pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from visionattn.kernels import dispatch, local  # noqa: F401  local registers the backends
from visionattn.kernels.deformable_torch import (
    Levels,
    deformable_attention_torch,
    ms_deform_attn_torch,
    sample_points_torch,
)
from visionattn.kernels.pattern import is_symbolic

dispatch.register_op("torch", "sample_points", sample_points_torch)
dispatch.register_op("torch", "deformable_attention", deformable_attention_torch)
dispatch.register_op("torch", "ms_deform_attn", ms_deform_attn_torch)

GRIDS = ("centers", "corners")


def sample_points(x: Tensor, points: Tensor) -> Tensor:
    """Reads a map bilinearly at points, each group of channels at points of its own.

    Paper: Vision Transformer with Deformable Attention, arXiv 2201.00520.

    Args:
        x: Map (B, H, W, C); zero beyond its border.
        points: (B, groups, N, 2), (y, x) from -1 to 1, which are the centres of the outermost pixels; float32 at least.
            Group g reads the g-th of `groups` equal blocks of channels.

    Returns:
        Samples (B, N, C).

    Raises:
        ValueError: Shapes don't fit together.
        TypeError: `x` or `points` is not of floating point, or `points` in half precision.
    """
    _check_points(points)
    if not x.is_floating_point():
        raise TypeError(f"x is {x.dtype}; it must be of floating point")
    if x.ndim != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (B, H, W, C)")
    if not is_symbolic(*x.shape, *points.shape):
        if x.shape[0] != points.shape[0]:
            raise ValueError(f"points {tuple(points.shape)} and x {tuple(x.shape)} must agree in the batch")
        if x.shape[3] % points.shape[1]:
            raise ValueError(f"points {tuple(points.shape)} have {points.shape[1]} groups; they must divide the "
                             f"{x.shape[3]} channels of x")  # fmt: skip
    problem = dispatch.Problem("sample_points", x.device.type, x.dtype, x.shape[3], x.shape[3], 2)
    return dispatch.run(problem, x, points)


def deformable_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    points: Tensor,
    table: Tensor | None = None,
    *,
    grid: str = "corners",
    scale: float | None = None,
) -> Tensor:
    """Attention of every pixel to keys at real-valued points, with a position bias interpolated from a table.

    Keys and values are what was projected from `sample_points`; the queries of an image share them. Logits and bias
    exist for a bounded number of queries at a time, and again in the backward, which keeps the inputs only. Paper:
    Vision Transformer with Deformable Attention, arXiv 2201.00520; DAT++, arXiv 2309.01430.

    Args:
        q: Queries (B, H, W, heads, head_dim).
        k: Keys (B, N, heads, head_dim).
        v: Values (B, N, heads, v_dim).
        points: Where keys lie, (B, groups, N, 2), (y, x) from -1 to 1; float32 at least. Head n takes its keys at the
            points of group n // (heads / groups).
        table: Bias (heads, 2h - 1, 2w - 1), read bilinearly at (query - point) / 2, where -1 and 1 are its outermost
            entries; zero beyond. It fits maps of any size; h x w is the one it was made for. None for no bias.
        grid: Where queries lie: "corners", i -> 2i / (H - 1) - 1, the outermost ones on the border (DAT++); or
            "centers", i -> 2(i + 1/2) / H - 1 (DAT). A single pixel lies at 1 and at 0.
        scale: Factor of <q, k>; None means ``head_dim ** -0.5``.

    Returns:
        Output (B, H, W, heads, v_dim).

    Raises:
        ValueError: Shapes don't fit together, or `grid` is unknown.
        TypeError: q, k and v differ in dtype, or `points` is in half precision.
        RuntimeError: The backend asked for can't run the call.
    """
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise TypeError(f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}; they must share one floating-point dtype")
    _check_points(points)
    if grid not in GRIDS:
        raise ValueError(f"grid={grid!r} must be 'centers' or 'corners'")
    if not is_symbolic(*q.shape, *k.shape, *points.shape):
        _check_shapes(q, k, v, points, table)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    problem = dispatch.Problem("deformable_attention", q.device.type, q.dtype, q.shape[-1], v.shape[-1], 2)
    return dispatch.run(problem, q, k, v, points, table, grid, scale)


def _check_points(points: Tensor) -> None:
    if points.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"points is {points.dtype}; it must be torch.float32 or torch.float64")
    if points.ndim != 4 or points.shape[3] != 2:
        raise ValueError(f"points has shape {tuple(points.shape)}; it must be (B, groups, N, 2)")


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, points: Tensor, table: Tensor | None) -> None:
    if q.ndim != 5:
        raise ValueError(f"q has shape {tuple(q.shape)}; it must be (B, H, W, heads, head_dim)")
    heads = q.shape[3]
    if k.ndim != 4 or k.shape[0] != q.shape[0] or k.shape[2:] != q.shape[3:] or k.shape[1] < 1:
        raise ValueError(f"k has shape {tuple(k.shape)}; it must be ({q.shape[0]}, N, {heads}, {q.shape[4]}), N > 0")
    if v.ndim != 4 or v.shape[:3] != k.shape[:3]:
        raise ValueError(f"v has shape {tuple(v.shape)}; it must be like k {tuple(k.shape)} but for its last axis")
    if points.shape[0] != k.shape[0] or points.shape[2] != k.shape[1] or points.shape[1] < 1 or heads % points.shape[1]:
        raise ValueError(f"points has shape {tuple(points.shape)}; it must be ({k.shape[0]}, groups, {k.shape[1]}, 2), "
                         f"with groups that divide the {heads} heads")  # fmt: skip
    if table is not None and (table.ndim != 3 or table.shape[0] != heads or min(table.shape) < 1):
        raise ValueError(f"table has shape {tuple(table.shape)}; it must be ({heads}, 2h - 1, 2w - 1)")


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    level_start_index: Tensor | Sequence[int] | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention: weighted samples of several maps, bilinear, zero beyond their borders.

    Arguments and result are those of mmcv's op of this name. A pixel of index i covers [i / W, (i + 1) / W]. Samples
    exist for a bounded number of queries at a time, and again in the backward, which keeps the inputs only. Paper:
    Deformable DETR, arXiv 2010.04159.

    Args:
        value: Maps of all levels (N, S, heads, D), the pixels of each row by row.
        spatial_shapes: Height and width of each level, (L, 2); a tensor of int64, or numbers, which on a GPU need not
            be waited for.
        level_start_index: First pixel of each level (L,); None where levels follow each other from the start.
        sampling_locations: (N, Q, heads, L, P, 2), (x, y), from 0 to 1 inside the map.
        attention_weights: Factors (N, Q, heads, L, P); they need not sum to 1.

    Returns:
        Output (N, Q, heads * D), in the dtype of `value`.

    Raises:
        ValueError: Shapes don't fit together, or a level reaches beyond `value`.
        TypeError: A tensor is not of floating point, or sizes are no integers.
        RuntimeError: The backend asked for can't run the call.
    """
    tensors = {"value": value, "sampling_locations": sampling_locations, "attention_weights": attention_weights}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise TypeError(f"{name} is {tensor.dtype}; it must be of floating point")
    if value.ndim != 4:
        raise ValueError(f"value has shape {tuple(value.shape)}; it must be (N, S, heads, D)")
    levels = _levels(spatial_shapes, level_start_index)
    _check_places(value, len(levels[0]), sampling_locations, attention_weights)
    if isinstance(levels, Levels):
        for height, width, start in zip(*levels, strict=True):
            if min(height, width) < 1 or start < 0 or start + height * width > value.shape[1]:
                raise ValueError(f"spatial_shapes has a {height}x{width} level that starts at {start}; it must have "
                                 f"pixels and lie inside the {value.shape[1]} of value")  # fmt: skip
    problem = dispatch.Problem("ms_deform_attn", value.device.type, value.dtype, value.shape[3], value.shape[3], 2)
    return dispatch.run(problem, value, levels, sampling_locations, attention_weights)


def _check_places(value: Tensor, levels: int, places: Tensor, weights: Tensor) -> None:
    batch, _, heads, _ = value.shape
    if places.ndim != 6 or places.shape[2:4] != (heads, levels) or places.shape[5] != 2 or places.shape[0] != batch:
        raise ValueError(f"sampling_locations has shape {tuple(places.shape)}; it must be "
                         f"({batch}, Q, {heads}, {levels}, P, 2)")  # fmt: skip
    if weights.shape != places.shape[:-1]:
        raise ValueError(f"attention_weights has shape {tuple(weights.shape)}; it must be {tuple(places.shape[:-1])}")


def _levels(
    shapes: Tensor | Sequence[Sequence[int]], starts: Tensor | Sequence[int] | None
) -> Levels | tuple[Tensor, Tensor, Tensor]:
    """Heights, widths and first pixels: numbers, or tensors where a tracer holds the numbers back."""
    if isinstance(shapes, Tensor):
        if shapes.ndim != 2 or shapes.shape[1] != 2:
            raise ValueError(f"spatial_shapes has shape {tuple(shapes.shape)}; it must be (L, 2)")
        if shapes.is_floating_point():
            raise TypeError(f"spatial_shapes is {shapes.dtype}; it must be torch.int64")
        if torch.compiler.is_compiling() or torch.compiler.is_exporting():
            sizes = shapes.prod(1)
            first = sizes.cumsum(0) - sizes if starts is None else torch.as_tensor(starts, device=shapes.device)
            return shapes[:, 0], shapes[:, 1], first
        shapes = shapes.tolist()
    if len(shapes) == 0 or any(len(shape) != 2 for shape in shapes):
        raise ValueError(f"spatial_shapes={shapes} must be pairs (height, width), at least one")
    heights, widths = zip(*shapes, strict=True)
    if starts is None:
        areas = [height * width for height, width in shapes]
        first_pixels = [sum(areas[:i]) for i in range(len(areas))]
    else:
        first_pixels = starts.tolist() if isinstance(starts, Tensor) else list(starts)
    if len(first_pixels) != len(heights):
        raise ValueError(f"level_start_index={first_pixels} must have one entry for each of the {len(heights)} levels")
    return Levels(tuple(heights), tuple(widths), tuple(first_pixels))
