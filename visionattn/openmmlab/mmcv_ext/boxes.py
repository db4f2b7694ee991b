# SPDX-License-Identifier: Apache-2.0
"""Overlaps of boxes, upright and rotated."""

from __future__ import annotations

import torch
from torch import Tensor

# Pairs of rotated boxes that are compared at a time: about 40 MiB of float64.
PAIRS = 1 << 16


def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Write IoU (`mode` 0) or intersection over the first box (1) of boxes (m, 4) and (n, 4), (x1, y1, x2, y2).

    Args:
        bboxes1: Boxes (m, 4).
        bboxes2: Boxes (n, 4).
        ious: Output (m, n), or (m,) where `aligned`.
        mode: 0 or 1.
        aligned: Compare box i with box i only.
        offset: What is added to each side, 0 or 1. A box without area overlaps nothing.
    """
    _check_boxes("bboxes1", bboxes1, 4)
    _check_boxes("bboxes2", bboxes2, 4)
    ious.copy_(overlaps(bboxes1 if aligned else bboxes1[:, None], bboxes2, offset, mode == 1))


def overlaps(a: Tensor, b: Tensor, offset: float = 0, of_first: bool = False) -> Tensor:
    """IoU of boxes (..., 4) that broadcast, or their intersection over the area of `a`."""
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2]) + offset).clamp(min=0)
    shared = sides.prod(-1)
    area_a, area_b = ((box[..., 2:] - box[..., :2] + offset).prod(-1) for box in (a, b))
    return ratio(shared, area_a.expand_as(shared) if of_first else area_a + area_b - shared)


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """`part / whole`, zero where there is nothing to share."""
    return torch.where(whole > 0, part / torch.where(whole > 0, whole, 1), 0)


def box_iou_rotated(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool) -> None:
    """Write IoU (0) or intersection over the first box (1) of rotated boxes (x, y, w, h, angle in radians).

    Args:
        bboxes1: Boxes (m, 5).
        bboxes2: Boxes (n, 5).
        ious: Output (m * n,), or (m,) where `aligned`.
        mode_flag: 0 or 1.
        aligned: Compare box i with box i only.
    """
    _check_boxes("bboxes1", bboxes1, 5)
    _check_boxes("bboxes2", bboxes2, 5)
    if aligned:
        ious.copy_(rotated_overlaps(bboxes1, bboxes2, mode_flag == 1))
        return
    table = ious.view(len(bboxes1), len(bboxes2))
    step = max(1, PAIRS // max(1, len(bboxes2)))
    for start in range(0, len(bboxes1), step):
        table[start : start + step] = rotated_overlaps(bboxes1[start : start + step, None], bboxes2, mode_flag == 1)


def rotated_overlaps(a: Tensor, b: Tensor, of_first: bool = False) -> Tensor:
    """IoU of rotated boxes (..., 5) that broadcast, or their intersection over the area of `a`."""
    a, b = torch.broadcast_tensors(a.double(), b.double())
    shared = _intersection(a, b)
    area_a, area_b = a[..., 2] * a[..., 3], b[..., 2] * b[..., 3]
    return ratio(shared, area_a if of_first else area_a + area_b - shared)


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    """Area that rotated boxes (..., 5) share.

    In the frame of `a`, pull every point of b's outline to the nearest point of `a`. Around points inside `a` the
    outline winds as before, so what it encloses now, the integral of x dy along it, is the intersection. No vertices
    are sorted and no tolerance is needed: boxes may coincide, touch or have no area.
    """
    half = a[..., None, 2:4] / 2
    corners = _corners(b, a)  # (..., 4, 2)
    step = corners.roll(-1, -2) - corners
    # Along an edge, pulled coordinates are linear between the ends and the crossings of a's four sides.
    safe = torch.where(step == 0, 1, step)
    crossings = [torch.where(step == 0, 0, (side - corners) / safe) for side in (-half, half)]
    ends = torch.zeros_like(step[..., :1])
    places = torch.cat((ends, *crossings, ends + 1), -1).clamp(0, 1).sort(-1).values  # (..., 4, 6)
    path = corners[..., None, :] + places[..., None] * step[..., None, :]
    path = torch.minimum(torch.maximum(path, -half[..., None, :]), half[..., None, :])
    x, y = path.unbind(-1)
    return ((x[..., 1:] + x[..., :-1]) * y.diff(dim=-1)).sum((-1, -2)).abs() / 2


def _corners(box: Tensor, frame: Tensor) -> Tensor:
    """Corners (..., 4, 2) of rotated boxes, seen from the centre and along the sides of others."""
    signs = box.new_tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    corners = _rotate(box[..., None, 2:4] * signs, box[..., None, 4]) + (box - frame)[..., None, :2]
    return _rotate(corners, -frame[..., None, 4])


def _rotate(points: Tensor, angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    x, y = points.unbind(-1)
    return torch.stack((x * cos - y * sin, x * sin + y * cos), -1)


def _check_boxes(name: str, boxes: Tensor, columns: int) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != columns:
        raise ValueError(f"{name} has shape {tuple(boxes.shape)}; it must be (n, {columns})")
