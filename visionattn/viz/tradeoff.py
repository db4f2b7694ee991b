# SPDX-License-Identifier: Apache-2.0
"""Accuracy over speed."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from visionattn._files import replacing

SUFFIXES = (".png", ".svg")


def draw_tradeoff(
    results: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str],
    title: str = "",
    families: Mapping[str, str] | None = None,
) -> list[Path]:
    """Picture of top-1 accuracy over throughput, a point a model, one line a family; as PNG and as SVG.

    Args:
        results: Measurements with `model`, `top1` in percent, `images_per_second`, `accelerated`; those without one of
            the first three are left out.
        path: File to write, once with each suffix.
        title: What stands above.
        families: Family of each model's name; a model without one stands alone.

    Returns:
        The two files.

    Raises:
        ValueError: No result has both figures.
    """
    points = [r for r in results if r.get("top1") is not None and r.get("images_per_second")]
    if not points:
        raise ValueError("no model has both a published top-1 accuracy and a measured throughput: nothing to draw")
    groups: dict[tuple[str, bool], list[Mapping[str, Any]]] = defaultdict(list)
    for point in points:
        family = (families or {}).get(point["model"], point["model"])
        groups[family, bool(point.get("accelerated"))].append(point)
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(family for family, _ in groups))
    colors = {name: colormaps["tab20"](i % 20) for i, name in enumerate(names)}
    for (family, fast), members in groups.items():
        members = sorted(members, key=lambda point: point["images_per_second"])
        label = f"{family} (accelerated)" if fast else family
        style: dict[str, Any] = {
            "color": colors[family],
            "linestyle": "--" if fast else "-",
            "markerfacecolor": "white" if fast else None,
        }
        places = [(point["images_per_second"], point["top1"]) for point in members]
        axes.plot(*zip(*places, strict=True), marker="o", markersize=5, linewidth=1, label=label, **style)
        for (x, y), point in zip(places, members, strict=True):
            name = str(point["model"]).partition(".")[0].removeprefix("va_")
            axes.annotate(name, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=6)
    axes.set(xscale="log", xlabel="images a second, measured", ylabel="ImageNet-1K top-1, %, published", title=title)
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7)
    files = [Path(path).with_suffix(suffix) for suffix in SUFFIXES]
    for file in files:
        with replacing(file) as temporary:
            figure.savefig(temporary, dpi=150)
    return files
