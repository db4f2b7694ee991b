# SPDX-License-Identifier: Apache-2.0
"""What mixers reach and what they cost, side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from visionattn._files import replacing

COSTS = (("gmacs", "GMACs"), ("latency_ms", "latency of one image, ms"), ("peak_mib", "peak memory, MiB"))


def draw_study(
    results: Sequence[Mapping[str, Any]], sizes: Sequence[int], path: str | os.PathLike[str], title: str = ""
) -> None:
    """Picture of a study: accuracy and parameters as bars, and cost over the side of the images, a row a mixer.

    Args:
        results: What `visionattn.openmmlab.study.run_study` returns; those without figures are left out.
        sizes: Sides of the images that cost was measured for, in pixels.
        path: Image file to write, by suffix.
        title: What stands above.

    Raises:
        ValueError: No result has figures.
    """
    measured = [result for result in results if result.get("top1") is not None and result.get("sizes")]
    if not measured:
        raise ValueError("no config was measured: nothing to draw")
    ranked = sorted(measured, key=lambda result: result["top1"])
    figure = Figure(figsize=(17, 1.8 + 0.21 * len(ranked)), layout="constrained")
    accuracy, parameters, *costs = figure.subplots(1, 2 + len(COSTS), sharey=True, width_ratios=(1.3, 1, 1.3, 1.3, 1.3))
    rows = range(len(ranked))
    top1 = [result["top1"] for result in ranked]
    bars = accuracy.barh(rows, top1, color="#4c78a8")
    accuracy.bar_label(bars, fmt="%.1f", fontsize=6, padding=2)
    accuracy.set(xlabel="top-1, %", xlim=(max(0.0, min(top1) - 2), min(101.5, max(top1) + 2)))
    accuracy.set_yticks(rows, [str(result["name"]) for result in ranked], fontsize=7)
    parameters.barh(rows, [result["parameters"] / 1e3 for result in ranked], color="#9a9a9a")
    parameters.set(xlabel="parameters, thousands")
    colors = colormaps["viridis"]
    for axes, (key, label) in zip(costs, COSTS, strict=True):
        for i, side in enumerate(sizes):
            places = [(r["sizes"][str(side)][key], row) for row, r in zip(rows, ranked, strict=True)
                      if str(side) in r["sizes"]]  # fmt: skip
            color = colors(0.85 * i / max(len(sizes) - 1, 1))
            axes.plot(
                [x for x, _ in places], [row for _, row in places], "o", markersize=4, color=color, label=f"{side} px"
            )
        axes.set(xlabel=label, xscale="log")
    costs[-1].legend(frameon=False, fontsize=7)
    for axes in (accuracy, parameters, *costs):
        axes.grid(alpha=0.3, axis="x")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(-0.7, len(ranked) - 0.3)
    if title:
        figure.suptitle(title)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130)
