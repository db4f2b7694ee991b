# SPDX-License-Identifier: Apache-2.0
"""Routed attention: the pixels of a region attend to all pixels of a few regions that were chosen for it."""

from __future__ import annotations

import torch
from torch import Tensor

from visionattn.kernels import dispatch, local  # noqa: F401  local registers the backends
from visionattn.kernels.pattern import is_symbolic
from visionattn.kernels.routed_torch import routed_attention_torch

dispatch.register_op("torch", "routed_attention", routed_attention_torch)


def routed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: Tensor,
    grid: tuple[int, int],
    *,
    scale: float | None = None,
    route_weights: Tensor | None = None,
) -> Tensor:
    """Attention of each region of a map over all keys of the regions that `routes` gives it.

    Maps are cut into `grid` regions of equal size, counted row by row. Keys and values of chosen regions are gathered
    for a bounded number of regions at a time, and again in the backward, which keeps the inputs only. Gradients of keys
    and values in half precision are accumulated in float32. Paper: BiFormer, arXiv 2303.08810.

    Args:
        q: Queries (B, H, W, heads, head_dim); the grid divides H and W.
        k: Keys (B, H_k, W_k, heads, head_dim), which the grid divides too; pooled keys have smaller regions.
        v: Values (B, H_k, W_k, heads, v_dim).
        routes: Regions that each region attends to (B, rows * columns, n), int64; their order does not matter.
        grid: Rows and columns of regions.
        scale: Factor of <q, k>; None means ``head_dim ** -0.5``.
        route_weights: Factors (B, rows * columns, n) on keys and values of each route; None for 1.

    Returns:
        Output (B, H, W, heads, v_dim).

    Raises:
        ValueError: Shapes don't fit together, or the grid does not divide the maps.
        TypeError: q, k and v differ in dtype, or `routes` is not int64.
        RuntimeError: The backend asked for can't run the call.
    """
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise TypeError(f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}; they must share one floating-point dtype")
    if routes.dtype != torch.int64:
        raise TypeError(f"routes is {routes.dtype}; it must be torch.int64")
    if not is_symbolic(*q.shape, *k.shape, *routes.shape, *grid):
        _check_shapes(q, k, v, routes, grid, route_weights)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    problem = dispatch.Problem("routed_attention", q.device.type, q.dtype, q.shape[-1], v.shape[-1], 2)
    return dispatch.run(problem, q, k, v, routes, route_weights, grid, scale)


def _check_shapes(
    q: Tensor, k: Tensor, v: Tensor, routes: Tensor, grid: tuple[int, int], route_weights: Tensor | None
) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 5:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be (B, H, W, heads, channels)")
        if min(grid) < 1 or x.shape[1] % grid[0] or x.shape[2] % grid[1] or min(x.shape[1:]) < 1:
            raise ValueError(f"grid={tuple(grid)} must divide the {x.shape[1]}x{x.shape[2]} map of {name}")
    if k.shape[0] != q.shape[0] or k.shape[3:] != q.shape[3:]:
        raise ValueError(f"q {tuple(q.shape)} and k {tuple(k.shape)} must agree in batch, heads and head_dim")
    if v.shape[:-1] != k.shape[:-1]:
        raise ValueError(f"v has shape {tuple(v.shape)}; it must be like k {tuple(k.shape)} but for its last axis")
    regions = grid[0] * grid[1]
    if routes.ndim != 3 or routes.shape[:2] != (q.shape[0], regions) or routes.shape[2] < 1:
        raise ValueError(f"routes has shape {tuple(routes.shape)}; it must be ({q.shape[0]}, {regions}, n) with n > 0")
    if route_weights is not None and route_weights.shape != routes.shape:
        raise ValueError(f"route_weights has shape {tuple(route_weights.shape)}; it must be {tuple(routes.shape)}")
