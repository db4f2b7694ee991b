# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a model looks at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from visionattn._files import replacing

if TYPE_CHECKING:
    from visionattn.explanation import Explanation, Layer

MOST_HEADS = 8
OPACITY = 0.65


def draw_explanation(
    explanation: Explanation,
    image: np.ndarray,
    path: str | os.PathLike[str],
    title: str = "",
    layers: Sequence[int] | None = None,
) -> None:
    """Picture of an explanation: the whole model above, then a row a layer with a column a head.

    Weights lie over the grey image, each scaled to its own largest; negative ones are blue. The cross is the pixel,
    white dots are sampling points.

    Args:
        explanation: What `visionattn.explain` returns.
        image: What was explained, `(H, W, 3)`, 0 to 255.
        path: Image file to write, by suffix.
        title: What stands above.
        layers: Layers to draw, by position; the last one on each size of map if None.

    Raises:
        IndexError: There is no such layer.
        ValueError: The image has another size than the explained one.
    """
    if tuple(image.shape[:2]) != tuple(explanation.image_size):
        raise ValueError(f"image of size {image.shape[:2]} must have the explained one's, {explanation.image_size}")
    chosen = [explanation.layers[i] for i in (last_of_each_size(explanation.layers) if layers is None else layers)]
    columns = max(5, 1 + min(MOST_HEADS, max((len(layer.maps) for layer in chosen), default=0)))
    figure = Figure(figsize=(1.75 * columns, 1.95 * (1 + len(chosen)) + 0.4), layout="constrained")
    grid = figure.subplots(1 + len(chosen), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    grey = image.mean(-1)
    _draw_model(grid[0], explanation, image, grey)
    for row, layer in zip(grid[1:], chosen, strict=True):
        _draw_layer(row, layer, explanation.pixel, grey)
    if title:
        figure.suptitle(title, fontsize=10)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130)


def last_of_each_size(layers: Sequence[Layer]) -> list[int]:
    """Positions of the last layer on each size of map: of every stage, of a pyramid."""
    return sorted({layer.maps.shape[1:]: i for i, layer in enumerate(layers)}.values())


def _draw_model(row: Any, found: Explanation, image: np.ndarray, grey: np.ndarray) -> None:
    row[0].imshow(image.astype(np.uint8))
    row[0].plot(found.pixel[1], found.pixel[0], "+", color="red", markersize=9)
    row[0].set_title(f"class {found.target}, {100 * found.probability:.0f} %", fontsize=7)
    panels = [("rollout", found.rollout), ("flow", found.flow), ("Grad-CAM", found.grad_cam),
              ("receptive field", found.receptive_field)]  # fmt: skip
    for axes, (name, values) in zip(row[1:], panels, strict=False):
        if values is None:
            continue
        _overlay(axes, values, grey)
        axes.set_title(name, fontsize=7)


def _draw_layer(row: Any, layer: Layer, pixel: tuple[int, int], grey: np.ndarray) -> None:
    maps = [("mean" if len(layer.maps) > 1 else "", layer.maps.mean(0))]
    if len(layer.maps) > 1:
        maps += [(f"head {i}", values) for i, values in enumerate(layer.maps[:MOST_HEADS])]
    height, width = grey.shape
    for i, (axes, (name, values)) in enumerate(zip(row, maps, strict=False)):
        _overlay(axes, values, grey)
        axes.plot(pixel[1], pixel[0], "+", color="red", markersize=7)
        if layer.points is not None:
            # A head reads at the points of its group.
            points = layer.points[(i - 1) * len(layer.points) // len(layer.maps)] if i else layer.points
            places = 0.5 * (points.reshape(-1, 2) + 1) * (height - 1, width - 1)
            axes.plot(places[:, 1], places[:, 0], ".", color="white", markersize=2, alpha=0.8)
            axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        axes.set_title(name if i else "", fontsize=7)
    first = f"{layer.name}, {layer.kind}\n{layer.method} {maps[0][0]}"
    row[0].set_title(first, fontsize=6, loc="left")


def _overlay(axes: Any, values: np.ndarray, grey: np.ndarray) -> None:
    """Values of a map's cells, of whatever size, over the image."""
    extent = (-0.5, grey.shape[1] - 0.5, grey.shape[0] - 0.5, -0.5)
    largest = float(np.abs(values).max()) or 1.0
    signed = float(values.min()) < -1e-3 * largest
    axes.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=extent)
    axes.imshow(
        values,
        cmap="coolwarm" if signed else "inferno",
        vmin=-largest if signed else 0,
        vmax=largest,
        alpha=OPACITY,
        extent=extent,
        interpolation="nearest",
    )
