# SPDX-License-Identifier: Apache-2.0
"""Detection or segmentation on real images: train, evaluate the checkpoint in a new process, draw, sum up.

    python tools/demo_dense.py detection|one-stage|segmentation [--work-dir work_dirs/demo-detection] [key=value ...]

Exits with 1 if a figure on the held-back scenes is too low, or if the reloaded checkpoint measures differently from the
training run.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import NamedTuple

from demo import run
from rich.console import Console
from rich.table import Table


class Demo(NamedTuple):
    """A config, and the least value of each metric after training."""

    config: str
    targets: dict[str, float]


DEMOS = {
    "detection": Demo("builtin/scenes_mask-rcnn_nat-micro", {"coco/bbox_mAP_50": 0.80, "coco/segm_mAP_50": 0.70}),
    "one-stage": Demo("builtin/scenes_atss_nat-micro", {"coco/bbox_mAP_50": 0.80}),
    "segmentation": Demo("builtin/scenes_upernet_nat-micro", {"mIoU": 75.0}),
}


def main() -> int:
    """Run every step in a process of its own; 0 if all promises hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=DEMOS)
    parser.add_argument("--work-dir", type=Path, help="work_dirs/demo-TASK by default")
    parser.add_argument("--samples", type=int, default=12, help="held-back scenes to draw")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values to change in the config")
    args = parser.parse_intermixed_args()
    demo, start = DEMOS[args.task], time.monotonic()
    folder = args.work_dir or Path("work_dirs", f"demo-{args.task}")
    # The run's own config, with the overrides in it. Its last checkpoint, as the best one is chosen on these scenes.
    checkpoint, config = folder / "last.pth", folder / f"{Path(demo.config).stem}.py"
    evaluation, picture = folder / "evaluation.json", folder / "predictions.png"

    run("train", demo.config, *args.overrides, "--work-dir", folder)
    run("evaluate", config, checkpoint, "-o", evaluation)
    run("predict", config, checkpoint, "-o", picture, "--samples", args.samples)

    trained = json.loads((folder / "summary.json").read_text())
    before = {name: value for name, value in trained["last"].items() if name not in ("epoch", "step")}
    after = json.loads(evaluation.read_text())["metrics"]
    checks = [
        (f"{name} on held-back scenes, at least {least:g}", f"{after[name]:.4g}", after[name] >= least)
        for name, least in demo.targets.items()
    ]
    same = [name for name in before if before[name] == after.get(name)]
    checks.append(
        ("reloaded checkpoint measures the same", f"{len(same)} of {len(before)} figures", len(same) == len(before))
    )
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    table = Table(title=f"visionattn {args.task} demo", title_justify="left", show_header=False)
    for name, value, good in checks:
        table.add_row(name, value, "ok" if good else "FAILED")
    table.add_section()
    table.add_row("time", f"{time.monotonic() - start:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of processor", "")
    table.add_row("training", f"{trained['seconds']:.0f} s, {trained['parameters']:,} parameters", "")
    for name, path in [
        ("predictions", picture),
        ("curves", trained["curves"]),
        ("checkpoint", checkpoint),
        ("metrics", trained["metrics_file"]),
    ]:
        table.add_row(name, str(path), "")
    Console().print(table, highlight=False)
    return 0 if all(good for *_, good in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
