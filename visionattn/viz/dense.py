# SPDX-License-Identifier: Apache-2.0
"""Pictures of detections and class maps, beside the ground truth where it is known."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from visionattn._files import replacing

OPACITY = 0.5
IGNORED = (128, 128, 128)
LEGEND_LENGTH = 24


@dataclass(frozen=True)
class Objects:
    """Objects in one image.

    Args:
        boxes: `(N, 4)`: left, top, right, bottom in pixels.
        labels: Class index of each, `(N,)`.
        scores: Confidence of each, 0 to 1, `(N,)`; None for ground truth.
        masks: Pixels of each, `(N, H, W)` bool; None where there are none.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None
    masks: np.ndarray | None = None

    def __post_init__(self) -> None:
        count = len(self.labels)
        for name in ("boxes", "scores", "masks"):
            value = getattr(self, name)
            if value is not None and len(value) != count:
                raise ValueError(f"{name} has {len(value)} entries, labels {count}; they must be as many")

    def above(self, score: float) -> Objects:
        """Those with at least this score."""
        if self.scores is None:
            return self
        kept = self.scores >= score
        return Objects(
            self.boxes[kept], self.labels[kept], self.scores[kept], None if self.masks is None else self.masks[kept]
        )


@dataclass(frozen=True)
class DensePrediction:
    """One image and what a detector or segmentor says about it.

    Args:
        image: RGB image, `(H, W, 3)` uint8.
        predicted: Objects, or a class map `(H, W)` of class indices.
        classes: Class names.
        truth: Ground truth of the same kind; None where it is not known.
        source: Where the image comes from.
        palette: RGB colour of each class, 0 to 255; None chooses them.
        ignore_index: Label of pixels of a class map that belong to no class.
    """

    image: np.ndarray
    predicted: Objects | np.ndarray
    classes: Sequence[str]
    truth: Objects | np.ndarray | None = None
    source: str = ""
    palette: Sequence[Sequence[int]] | None = None
    ignore_index: int = 255

    def summary(self) -> str:
        """What is in the image, in a line."""
        if isinstance(self.predicted, Objects):
            scores = self.predicted.scores
            found = [self.classes[label] for label in self.predicted.labels]
            if scores is not None:
                found = [f"{name} {score:.2f}" for name, score in zip(found, scores, strict=True)]
            return ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "") or "nothing"
        labels, counts = np.unique(self.predicted, return_counts=True)
        order = np.argsort(-counts)[:6]
        return ", ".join(f"{self.classes[labels[i]]} {100 * counts[i] / self.predicted.size:.0f} %" for i in order)


def draw_dense(
    predictions: Sequence[DensePrediction],
    path: str | os.PathLike[str],
    columns: int | None = None,
    title: str = "",
) -> None:
    """Picture of a grid of images with their objects or class maps drawn in, the ground truth to the right of each.

    Args:
        predictions: What to draw, row by row.
        path: Image file to write, by suffix.
        columns: Images in a row, not counting ground truths; None chooses.
        title: Line above the grid.

    Raises:
        ValueError: `predictions` is empty or `columns` is not positive.
    """
    if not predictions:
        raise ValueError("predictions is empty: there is nothing to draw")
    with_truth = any(prediction.truth is not None for prediction in predictions)
    columns = columns if columns is not None else min(len(predictions), 3 if with_truth else 4)
    if columns < 1:
        raise ValueError(f"columns={columns} must be at least 1")
    panels = [panel for prediction in predictions for panel in _panels(prediction, with_truth)]
    across = columns * (2 if with_truth else 1)
    rows = -(-len(panels) // across)
    width = 3.2 if len(panels) > 2 else 9.0 / len(panels)
    height = width * float(np.median([_ratio(prediction.image) for prediction in predictions])) + 0.35
    figure = Figure(figsize=(width * across, height * rows + (0.5 if title else 0)), layout="constrained")
    grid = figure.subplots(rows, across, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (prediction, found, name) in zip(grid.flat, panels, strict=False):
        _draw(axes, prediction, found)
        axes.set_title(name, fontsize=8)
    _legend(figure, predictions)
    if title:
        figure.suptitle(title)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130)


def class_colors(count: int, palette: Sequence[Sequence[int]] | None = None) -> np.ndarray:
    """RGB colour of each class, `(count, 3)` uint8: the palette's, or hues far apart for neighbouring classes."""
    if palette is not None and len(palette) >= count:
        return np.asarray(palette, dtype=np.uint8)[:count]
    golden = 0.6180339887
    hues = [colorsys.hsv_to_rgb((i * golden) % 1.0, 0.75, 1.0 - 0.25 * (i % 2)) for i in range(count)]
    return np.round(255 * np.asarray(hues).reshape(count, 3)).astype(np.uint8)


def overlay_class_map(prediction: DensePrediction, class_map: np.ndarray) -> np.ndarray:
    """The image under the colours of a class map, `(H, W, 3)` uint8; pixels of no class are grey."""
    if class_map.shape != prediction.image.shape[:2]:
        raise ValueError(f"class map of shape {class_map.shape} does not fit an image {prediction.image.shape[:2]}")
    colors = np.full((max(int(class_map.max(initial=0)), prediction.ignore_index) + 1, 3), IGNORED, dtype=np.uint8)
    known = class_colors(len(prediction.classes), prediction.palette)
    colors[: len(known)] = known
    colors[prediction.ignore_index] = IGNORED
    return _blend(prediction.image, colors[class_map])


def overlay_masks(prediction: DensePrediction, objects: Objects) -> np.ndarray:
    """The image with each object's pixels in the colour of its class, `(H, W, 3)` uint8."""
    image = prediction.image.copy()
    colors = class_colors(len(prediction.classes), prediction.palette)
    for mask, label in zip(objects.masks if objects.masks is not None else (), objects.labels, strict=False):
        image[mask] = _blend(image[mask], colors[label])
    return image


def _blend(image: np.ndarray, color: np.ndarray) -> np.ndarray:
    return np.round((1 - OPACITY) * image + OPACITY * color).astype(np.uint8)


def _panels(
    prediction: DensePrediction, with_truth: bool
) -> list[tuple[DensePrediction, Objects | np.ndarray | None, str]]:
    name = Path(prediction.source).name
    panels: list[tuple[DensePrediction, Objects | np.ndarray | None, str]] = []
    panels.append((prediction, prediction.predicted, name or "predicted"))
    if with_truth:
        panels.append((prediction, prediction.truth, "ground truth"))
    return panels


def _draw(axes: Any, prediction: DensePrediction, found: Objects | np.ndarray | None) -> None:
    if found is None:
        return
    if isinstance(found, np.ndarray):
        axes.imshow(overlay_class_map(prediction, found), interpolation="nearest")
        return
    axes.imshow(overlay_masks(prediction, found), interpolation="nearest")
    colors = class_colors(len(prediction.classes), prediction.palette) / 255
    for i, (box, label) in enumerate(zip(found.boxes, found.labels, strict=True)):
        left, top, right, bottom = map(float, box)
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colors[label], lw=1.2))
        score = "" if found.scores is None else f" {found.scores[i]:.2f}"
        axes.text(
            left,
            top,
            f"{prediction.classes[label]}{score}",
            fontsize=5.5,
            va="bottom",
            color="black" if colors[label].mean() > 0.5 else "white",
            bbox={"facecolor": colors[label], "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
            clip_on=True,
        )


def _legend(figure: Figure, predictions: Sequence[DensePrediction]) -> None:
    """Names and colours of the classes in class maps; boxes carry theirs."""
    first = predictions[0]
    maps = [m for p in predictions for m in (p.predicted, p.truth) if isinstance(m, np.ndarray)]
    if not maps:
        return
    labels = np.unique(np.concatenate([np.unique(class_map) for class_map in maps]))
    labels = labels[labels < len(first.classes)][:LEGEND_LENGTH]
    colors = class_colors(len(first.classes), first.palette) / 255
    handles = [Patch(color=colors[label], label=first.classes[label]) for label in labels]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=7, frameon=False)


def _ratio(image: np.ndarray) -> float:
    """Height by width, within what fits a grid."""
    return float(np.clip(image.shape[0] / image.shape[1], 0.4, 2.0))
