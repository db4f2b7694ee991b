# SPDX-License-Identifier: Apache-2.0
"""Maps read between their pixels by RoIAlign's rule, and where a region's bins are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Samples, counted over channels, that exist at a time: 16 MiB of float32.
CHUNK = 1 << 22


def bilinear(maps: Tensor, image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Samples (P, S, C) of maps (N, C, H, W) at rows `y` and columns `x` (P, S) of images (P,).

    Up to one pixel beyond the border the border's value is repeated; further out everything is zero.
    """
    height, width = maps.shape[-2:]
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.detach().floor(), x.detach().floor()
    down, right = y - top, x - left
    rows = maps.permute(0, 2, 3, 1).flatten(0, 2)
    samples = rows.new_zeros(())
    for i, weight_y in ((0, 1 - down), (1, down)):
        for j, weight_x in ((0, 1 - right), (1, right)):
            row, column = (top + i).clamp(max=height - 1).long(), (left + j).clamp(max=width - 1).long()
            pixel = (image.long()[:, None] * height + row) * width + column
            weight = torch.where(inside, weight_y * weight_x, 0)
            samples = samples + rows.index_select(0, pixel.flatten()).unflatten(0, pixel.shape) * weight[..., None]
    return samples


class Regions(NamedTuple):
    """Boxes on a map: image, first row and column, height and width in pixels, each (R,)."""

    image: Tensor
    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


class Points(NamedTuple):
    """Sample points of some regions, given by index (r,).

    Rows `y` (r, bins_y, 1, points_y, 1) and columns `x` (r, 1, bins_x, 1, points_x) broadcast.
    """

    regions: Tensor
    y: Tensor
    x: Tensor


def bin_points(regions: Regions, bins: tuple[int, int], sampling_ratio: int, channels: int) -> Iterator[Points]:
    """Points at which bins of regions are read, for a bounded number of regions at a time.

    `sampling_ratio` points along each axis of a bin, evenly spread; 0 for about one a pixel, which leaves none for
    regions without an area.
    """
    sizes = torch.stack((regions.height, regions.width), 1).detach()
    if sampling_ratio > 0:
        counts = torch.full_like(sizes, sampling_ratio, dtype=torch.long)
    else:
        counts = (sizes / sizes.new_tensor(bins)).ceil().clamp(min=0).long()
    for points in counts.unique(dim=0).tolist():
        total = points[0] * points[1] * bins[0] * bins[1] * channels
        same = (counts == counts.new_tensor(points)).all(1).nonzero()[:, 0]
        for index in same.split(max(1, CHUNK // total)) if total else ():
            y = _axis(regions.top[index], regions.height[index], bins[0], points[0])
            x = _axis(regions.left[index], regions.width[index], bins[1], points[1])
            yield Points(index, y[:, :, None, :, None], x[:, None, :, None, :])


def _axis(start: Tensor, size: Tensor, bins: int, points: int) -> Tensor:
    """Coordinates (R, bins, points) along one axis."""
    bin_ = torch.arange(bins, dtype=start.dtype, device=start.device)[:, None]
    point = (torch.arange(points, dtype=start.dtype, device=start.device) + 0.5) / points
    return start[:, None, None] + (bin_ + point) * (size / bins)[:, None, None]


def read_bins(maps: Tensor, image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Samples (r, C, bins_y, bins_x, points) at points of `Points`' shape, or one for each bin and point."""
    y, x = torch.broadcast_tensors(y, x)
    samples = bilinear(maps, image, y.flatten(1), x.flatten(1))
    return samples.movedim(-1, 1).unflatten(2, (y.shape[1], y.shape[2], -1))
