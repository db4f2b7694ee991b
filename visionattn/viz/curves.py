# SPDX-License-Identifier: Apache-2.0
"""Training curves."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from visionattn._files import replacing

TRAIN, VAL = "#8fb4d9", "#d1495b"


def draw_curves(records: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Picture of a run: loss, top-1 accuracy and learning rate over steps.

    Args:
        records: Lines of a metrics file: `mode` ("train" or "val"), `step`, and figures.
        path: Image file to write, by suffix.

    Raises:
        ValueError: There are no records.
    """
    if not records:
        raise ValueError("records is empty: there is nothing to draw")
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    _line(loss, records, "train", "loss", "training", TRAIN)
    _line(loss, records, "val", "nll", "validation", VAL)
    _line(accuracy, records, "train", "top1", "training (augmented)", TRAIN)
    _line(accuracy, records, "val", "top1", "validation", VAL)
    _line(rate, records, "train", "lr", "learning rate", TRAIN)
    best = max((r["top1"] for r in records if r["mode"] == "val" and "top1" in r), default=None)
    accuracy.set_title("top-1 accuracy, %" if best is None else f"top-1 accuracy, % (best {best:.2f})")
    loss.set_title("loss")
    rate.set_title("learning rate")
    for axes in (loss, accuracy, rate):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes is not rate and axes.lines:
            axes.legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _line(axes: Any, records: Sequence[Mapping[str, Any]], mode: str, key: str, label: str, color: str) -> None:
    points = [(r["step"], r[key]) for r in records if r["mode"] == mode and key in r]
    if points:
        axes.plot(
            *zip(*points, strict=True), label=label, color=color, marker="o" if mode == "val" else "", markersize=3
        )
