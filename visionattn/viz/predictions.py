# SPDX-License-Identifier: Apache-2.0
"""Grids of labelled predictions."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from visionattn._files import replacing

RIGHT, WRONG, UNKNOWN = "#2a7f4f", "#c0392b", "#333333"


@dataclass(frozen=True)
class Prediction:
    """One image and what a classifier says about it.

    Args:
        image: RGB image, `(H, W, 3)` uint8.
        label: Predicted class.
        confidence: Its probability, 0 to 1.
        truth: True class; None where it is not known.
        source: Where the image comes from.
    """

    image: np.ndarray
    label: str
    confidence: float
    truth: str | None = None
    source: str = ""


def draw_predictions(
    predictions: Sequence[Prediction], path: str | os.PathLike[str], columns: int | None = None, title: str = ""
) -> None:
    """Picture of a grid of images, each under its predicted class and confidence.

    Right predictions are green; wrong ones are red, framed, and name the true class.

    Args:
        predictions: What to draw, row by row.
        path: Image file to write, by suffix.
        columns: Images in a row; None chooses a wide grid with few empty places.
        title: Line above the grid.

    Raises:
        ValueError: `predictions` is empty or `columns` is not positive.
    """
    if not predictions:
        raise ValueError("predictions is empty: there is nothing to draw")
    if columns is None:
        columns = _columns(len(predictions))
    if columns < 1:
        raise ValueError(f"columns={columns} must be at least 1")
    rows = math.ceil(len(predictions) / columns)
    figure = Figure(figsize=(max(1.7 * columns, 4.0), 2.05 * rows + (0.4 if title else 0)), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, prediction in zip(grid.flat, predictions, strict=False):
        _draw_one(axes, prediction)
    if title:
        figure.suptitle(title)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _draw_one(axes, prediction: Prediction) -> None:
    right = None if prediction.truth is None else prediction.truth == prediction.label
    color = {None: UNKNOWN, True: RIGHT, False: WRONG}[right]
    text = f"{_short(prediction.label)}  {100 * prediction.confidence:.0f} %"
    if right is False:
        text += f"\n(is {_short(prediction.truth)})"
        axes.set_axis_on()
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color=WRONG, linewidth=3)
    axes.imshow(prediction.image, interpolation="nearest")
    axes.set_title(text, color=color, fontsize=10)


def _columns(count: int) -> int:
    """Grid width near 1.6 times its height, with few empty places."""
    ideal = math.sqrt(1.6 * count)
    widths = range(max(1, math.floor(0.75 * ideal)), min(count, math.ceil(1.4 * ideal)) + 1)
    return min(widths, key=lambda width: (-count % width, abs(width - ideal)))


def _short(name: str | None, length: int = 22) -> str:
    name = str(name)
    return name if len(name) <= length else name[: length - 1] + "…"
