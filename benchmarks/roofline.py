# SPDX-License-Identifier: Apache-2.0
"""The roofline of `benchmarks/kernels.py`: what was computed a second, against the work for each byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from visionattn._files import replacing

MARKS = {"visionattn": ("o", "#d1495b"), "flex": ("s", "#30638e"), "dense": ("^", "#8fb4d9"),
         "unfused": ("v", "#9a9a9a"), "unfused-sdpa": ("x", "#6b6b6b"), "natten": ("D", "#2a9d63")}  # fmt: skip


def draw_roofline(content: dict[str, Any], path: Path) -> None:
    """Draw forward and training, side by side; the image's kind is by suffix."""
    records = [r for r in content["records"] if "ms" in r]
    modes = sorted({r["mode"] for r in records})
    if not modes:
        raise ValueError("there are no times to draw")
    figure = Figure(figsize=(6.5 * len(modes), 5), layout="constrained")
    machine, rates = content["machine"], content["ceilings"]
    figure.suptitle(f"{machine['device']}, torch {machine['torch']}: local attention, useful work only")
    for axes, mode in zip(figure.subplots(1, len(modes), squeeze=False)[0], modes, strict=True):
        found = [r for r in records if r["mode"] == mode]
        for name, (marker, color) in MARKS.items():
            points = [(r["intensity"], r["tflops"]) for r in found if r["contender"] == name]
            if points:
                axes.scatter(*zip(*points, strict=True), marker=marker, color=color, label=name, s=22, alpha=0.8)
        ends = [min(r["intensity"] for r in found) / 2, max(r["intensity"] for r in found) * 2]
        ends = sorted([*ends, 1000 * rates["tflops"] / rates["gbytes"]])
        axes.plot(ends, [min(x * rates["gbytes"] / 1000, rates["tflops"]) for x in ends], color="black", lw=1)
        axes.set(xscale="log", yscale="log", xlabel="useful FLOP per ideal byte", ylabel="useful TFLOP/s", title=mode)
        axes.grid(alpha=0.3, which="both")
        axes.legend(frameon=False, fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
