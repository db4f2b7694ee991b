# SPDX-License-Identifier: Apache-2.0
"""Text instances from kernels: progressive scale expansion and pixel aggregation."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
from torch import Tensor

_STEPS = ((-1, 0), (1, 0), (0, -1), (0, 1))


def contour_expand(
    kernel_mask: Tensor, internal_kernel_label: Tensor, min_kernel_area: int, kernel_num: int
) -> list[list[int]]:
    """Labels of the smallest kernels, grown through larger and larger ones; paper: PSENet, arXiv 1903.12473.

    Args:
        kernel_mask: Kernels (n, H, W), the largest first, the smallest last.
        internal_kernel_label: Labels of the smallest (H, W); 0 for none.
        min_kernel_area: Labels of fewer pixels go.
        kernel_num: Number of labels, 0 included.

    Returns:
        Label of each pixel, as H lists of W numbers.

    Raises:
        ValueError: Shapes don't fit together.
    """
    masks, labels = kernel_mask.cpu().numpy() != 0, internal_kernel_label.cpu().numpy().astype(np.int64)
    if masks.ndim != 3 or labels.shape != masks.shape[1:]:
        raise ValueError(f"kernel_mask has shape {masks.shape}; it must be (n, H, W) for labels {labels.shape}")
    areas = np.bincount(labels.clip(0).ravel(), minlength=kernel_num)
    labels[areas[labels.clip(0)] < min_kernel_area] = 0
    for mask in masks[-2::-1] if len(masks) > 1 else ():

        def joins(y: int, x: int, label: int, mask: np.ndarray = mask) -> bool:
            return bool(mask[y, x])

        _grow(labels, joins)
    return labels.tolist()


def pixel_group(
    score: Tensor,
    mask: Tensor,
    embedding: Tensor,
    kernel_label: Tensor,
    kernel_contour: Tensor,
    kernel_region_num: int,
    distance_threshold: float,
) -> list[list[float]]:
    """Text instances: kernels, grown to pixels of similar embeddings; paper: PAN, arXiv 1908.05900.

    Args:
        score: Confidences (H, W).
        mask: Where text is (H, W).
        embedding: (H, W, C).
        kernel_label: Labels of kernels (H, W); 0 for none.
        kernel_contour: Where kernels begin to grow (H, W).
        kernel_region_num: Number of labels, 0 included.
        distance_threshold: Distance of a pixel's embedding to the kernel's mean below which it joins.

    Returns:
        For each label its mean confidence, number of pixels, and x and y of each; label 0 is empty.

    Raises:
        ValueError: Shapes don't fit together.
    """
    labels = kernel_label.cpu().numpy().astype(np.int64)
    texts, vectors, confidence = mask.cpu().numpy() != 0, embedding.cpu().double().numpy(), score.cpu().double().numpy()
    if vectors.ndim != 3 or not labels.shape == texts.shape == confidence.shape == vectors.shape[:2]:
        raise ValueError(f"score {confidence.shape}, mask {texts.shape}, kernel_label {labels.shape} and embedding "
                         f"{vectors.shape} must be (H, W), and (H, W, C) the last")  # fmt: skip
    present = sorted(set(labels[labels > 0].tolist()))
    means = {label: vectors[labels == label].mean(0) for label in present}

    def joins(y: int, x: int, label: int) -> bool:
        return bool(texts[y, x]) and float(np.linalg.norm(vectors[y, x] - means[label])) < distance_threshold

    _grow(labels, joins, kernel_contour.cpu().numpy() != 0)
    groups: list[list[float]] = [[0.0, 0.0]]
    for label in range(1, kernel_region_num):
        y, x = np.nonzero(labels == label)
        mean = float(confidence[y, x].mean()) if len(y) else 0.0
        groups.append([mean, float(len(y)), *np.stack((x, y), 1).ravel().astype(float).tolist()])
    return groups


def _grow(labels: np.ndarray, joins: Callable[[int, int, int], bool], start: np.ndarray | None = None) -> None:
    """Give pixels without a label that of a neighbour which got there first, breadth-first, where `joins` allows."""
    seeds = labels > 0 if start is None else (labels > 0) & start
    height, width = labels.shape
    queue = deque((int(y), int(x)) for y, x in zip(*np.nonzero(seeds), strict=True))
    while queue:
        y, x = queue.popleft()
        for dy, dx in _STEPS:
            v, u = y + dy, x + dx
            if 0 <= v < height and 0 <= u < width and not labels[v, u] and joins(v, u, int(labels[y, x])):
                labels[v, u] = labels[y, x]
                queue.append((v, u))
