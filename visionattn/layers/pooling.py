# SPDX-License-Identifier: Apache-2.0
"""Adaptive average pooling that traces with symbolic sizes."""

import torch
from torch import Tensor


def average_cells(x: Tensor, cells: tuple[int, int]) -> Tensor:
    """Averages `(B, rows, columns, C)` of the cells of a map `(B, H, W, C)`.

    Cells overlap where their number does not divide the map's sides.
    """
    return _average_rows(_average_rows(x, cells[0]).transpose(1, 2), cells[1]).transpose(1, 2)


def _average_rows(x: Tensor, count: int) -> Tensor:
    """Averages `(B, count, W, C)` of rows of a map."""
    # One product an image: merging images with another axis would tie a trace to a batch of more than one.
    averages = _averages(x.shape[1], count, x).expand(x.shape[0], -1, -1)
    return torch.bmm(averages, x.flatten(2)).unflatten(2, x.shape[2:])


def _averages(side: int, count: int, like: Tensor) -> Tensor:
    """Averages over the cells of an axis as a matrix `(count, side)`."""
    cell, pixel = torch.arange(count, device=like.device), torch.arange(side, device=like.device)
    first, end = cell * side // count, -((cell + 1) * -side // count)
    inside = (pixel >= first[:, None]) & (pixel < end[:, None])
    return inside.to(like.dtype) / (end - first)[:, None].to(like.dtype)
