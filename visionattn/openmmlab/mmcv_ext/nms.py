# SPDX-License-Identifier: Apache-2.0
"""Non-maximum suppression: hard, soft, grouping, and of rotated boxes."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor

from visionattn.openmmlab.mmcv_ext.boxes import overlaps, rotated_overlaps
from visionattn.openmmlab.mmcv_ext.gradients import wide

NAIVE, LINEAR, GAUSSIAN = range(3)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that are kept, best first: a box goes where a better one overlaps it by more.

    Args:
        boxes: (n, 4), (x1, y1, x2, y2).
        scores: (n,).
        iou_threshold: IoU above which a box goes.
        offset: What is added to each side of a box, 0 or 1.
    """
    _check(boxes, scores)
    if offset:  # a box that ends at pixel x2 reaches to x2 + 1
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torchvision.ops.nms(wide(boxes), wide(scores), iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Boxes by their scores, which fall where better boxes overlap them; paper: Soft-NMS, arXiv 1704.04503.

    Args:
        boxes: (n, 4), (x1, y1, x2, y2).
        scores: (n,).
        dets: Output (n, 5), whose first rows receive the boxes that are kept and their new scores.
        iou_threshold: IoU from which a score falls, but by a Gaussian.
        sigma: Width of the Gaussian.
        min_score: Boxes whose score falls below it go.
        method: 0 to zero, 1 times 1 - IoU, 2 times exp(-IoU² / sigma).
        offset: What is added to each side of a box, 0 or 1.

    Returns:
        Indices (k,) of the boxes that are kept, in the order of `dets`.
    """
    _check(boxes, scores)
    if method not in (NAIVE, LINEAR, GAUSSIAN):
        raise ValueError(f"method={method} must be 0 (naive), 1 (linear) or 2 (gaussian)")
    left, scores = torch.arange(len(boxes), device=boxes.device), scores.clone()
    kept: list[int] = []
    while len(left):
        best = int(scores[left].argmax())
        chosen = left[best]
        dets[len(kept), :4], dets[len(kept), 4] = boxes[chosen], scores[chosen]
        kept.append(int(chosen))
        left = torch.cat((left[:best], left[best + 1 :]))
        iou = overlaps(boxes[chosen], boxes[left], offset)
        if method == GAUSSIAN:
            scores[left] *= (-(iou**2) / sigma).exp()
        else:
            scores[left] *= torch.where(iou >= iou_threshold, 1 - iou if method == LINEAR else 0, 1)
        left = left[scores[left] >= min_score]
    return torch.tensor(kept, dtype=torch.long, device=boxes.device)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """For each box that NMS keeps, its index and those of the boxes it removes, by falling score.

    Args:
        dets: (n, 5), (x1, y1, x2, y2, score).
        iou_threshold: IoU above which a box goes.
    """
    if dets.ndim != 2 or dets.shape[1] != 5:
        raise ValueError(f"dets has shape {tuple(dets.shape)}; it must be (n, 5)")
    left, groups = dets[:, 4].argsort(descending=True, stable=True), []
    while len(left):
        same = overlaps(dets[left[0], :4], dets[left, :4]) > iou_threshold
        same[0] = True
        groups.append(left[same].tolist())
        left = left[~same]
    return groups


def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: bool | int,
) -> Tensor:
    """Indices of the rotated boxes that are kept, best first.

    Args:
        dets: (n, 5), (x, y, w, h, angle in radians), or (n, 6) with labels.
        scores: (n,).
        order: Indices by falling score (n,).
        dets_sorted: `dets[order]`.
        labels: Unused: labels are those of `dets`.
        iou_threshold: IoU above which a box goes.
        multi_label: Boxes of different labels leave each other alone.
    """
    columns = 6 if multi_label else 5
    if dets_sorted.ndim != 2 or dets_sorted.shape[1] != columns:
        raise ValueError(f"dets has shape {tuple(dets_sorted.shape)}; it must be (n, {columns})")
    left, kept = torch.arange(len(dets_sorted), device=dets.device), []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        goes = rotated_overlaps(dets_sorted[best, :5], dets_sorted[left, :5]) > iou_threshold
        if multi_label:
            goes &= dets_sorted[left, 5] == dets_sorted[best, 5]
        left = left[~goes]
    return order[torch.stack(kept)] if kept else order[:0]


def _check(boxes: Tensor, scores: Tensor) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes has shape {tuple(boxes.shape)}; it must be (n, 4)")
    if scores.shape != boxes.shape[:1]:
        raise ValueError(f"scores has shape {tuple(scores.shape)}; it must be {tuple(boxes.shape[:1])}")
