# SPDX-License-Identifier: Apache-2.0
"""Training curves."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from visionattn._files import replacing

TRAIN, VAL = "#8fb4d9", "#d1495b"


# Metrics to draw, and what they are called.
METRICS = (
    ("top1", "top-1 accuracy, %"),
    ("coco/bbox_mAP", "box AP"),
    ("coco/segm_mAP", "mask AP"),
    ("mIoU", "mean IoU, %"),
)


def draw_curves(records: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Picture of a run: loss, validation metrics and learning rate over steps.

    Args:
        records: Lines of a metrics file: `mode` ("train" or "val"), `step`, and figures.
        path: Image file to write, by suffix.

    Raises:
        ValueError: There are no records.
    """
    if not records:
        raise ValueError("records is empty: there is nothing to draw")
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, metric, rate = figure.subplots(1, 3)
    _line(loss, records, "train", "loss", "training", TRAIN)
    _line(loss, records, "val", "nll", "validation", VAL)
    loss.set_title("loss")
    _draw_metrics(metric, records)
    _line(rate, records, "train", "lr", "learning rate", TRAIN)
    rate.set_title("learning rate")
    for axes in (loss, metric, rate):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes is not rate and axes.lines:
            axes.legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _draw_metrics(axes: Any, records: Sequence[Mapping[str, Any]]) -> None:
    found = [(name, title) for name, title in METRICS if any(_is_number(record.get(name)) for record in records)]
    titles = []
    for (name, title), color in zip(found or METRICS[:1], (VAL, "#3a9d5d", "#8856a7", TRAIN), strict=False):
        _line(axes, records, "train", name, f"{title}, training (augmented)", TRAIN)
        _line(axes, records, "val", name, "validation" if len(found) < 2 else title, color)
        values = [record[name] for record in records if record["mode"] == "val" and _is_number(record.get(name))]
        digits = 2 if title.endswith("%") else 3
        titles.append(f"{title} (best {max(values):.{digits}f})" if values else title)
    axes.set_title(", ".join(titles))


def _line(axes: Any, records: Sequence[Mapping[str, Any]], mode: str, key: str, label: str, color: str) -> None:
    points = [(r["step"], r[key]) for r in records if r["mode"] == mode and _is_number(r.get(key))]
    if points:
        axes.plot(
            *zip(*points, strict=True), label=label, color=color, marker="o" if mode == "val" else "", markersize=3
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
