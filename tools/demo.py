# SPDX-License-Identifier: Apache-2.0
"""Train on real images, evaluate the checkpoint in a new process, draw predictions, export to ONNX, sum up.

    python tools/demo.py [--work-dir work_dirs/demo] [key=value ...]

Exits with 1 if test accuracy is under 97 %, if the reloaded checkpoint measures differently from the training run, or
if ONNX disagrees by more than 1e-4.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

CONFIG = "builtin/digits_nat-micro"
MIN_ACCURACY = 97.0
MAX_DIFFERENCE = 1e-4


def main() -> int:
    """Run every step in a process of its own; 0 if all promises hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/demo"))
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values to change in the config")
    args = parser.parse_args()
    folder, start = args.work_dir, time.monotonic()
    # The run's own config, with the overrides in it. Its last checkpoint, as the best one is chosen on the test images.
    checkpoint, config = folder / "last.pth", folder / f"{Path(args.config).stem}.py"
    files = {
        name: folder / name
        for name in ("summary.json", "evaluation.json", "predictions.png", "model.onnx", "export.json")
    }

    run("train", args.config, *args.overrides, "--work-dir", folder)
    run("evaluate", config, checkpoint, "-o", files["evaluation.json"])
    run("predict", config, checkpoint, "-o", files["predictions.png"], "--samples", 40)
    run("export", config, checkpoint, "-o", files["model.onnx"], "--json", files["export.json"])

    trained, evaluated, exported = (
        json.loads(files[f"{n}.json"].read_text()) for n in ("summary", "evaluation", "export")
    )
    before = {name: value for name, value in trained["last"].items() if name != "epoch"}
    after = evaluated["metrics"]
    difference = exported["max_relative_difference"]
    checks = [
        (f"test accuracy, at least {MIN_ACCURACY:.0f} %", f"{after['top1']:.2f} %", after["top1"] >= MIN_ACCURACY),
        (
            "reloaded checkpoint measures the same",
            f"{before['top1']:.2f} % then, {after['top1']:.2f} % now",
            before == after,
        ),
        (f"ONNX agrees within {MAX_DIFFERENCE:.0e}", f"{difference:.1e}", difference <= MAX_DIFFERENCE),
    ]
    table = Table(title=f"visionattn demo, {time.monotonic() - start:.0f} s", title_justify="left", show_header=False)
    for name, value, good in checks:
        table.add_row(name, value, "ok" if good else "FAILED")
    table.add_section()
    table.add_row("training", f"{trained['seconds']:.0f} s, {trained['parameters']:,} parameters", "")
    for name, path in [
        ("curves", trained["curves"]),
        ("predictions", files["predictions.png"]),
        ("checkpoint", checkpoint),
        ("ONNX", files["model.onnx"]),
        ("metrics", trained["metrics_file"]),
    ]:
        table.add_row(name, str(path), "")
    Console().print(table, highlight=False)
    return 0 if all(good for *_, good in checks) else 1


def run(*arguments: object) -> None:
    """One `visionattn` command in a new process; its failure ends the demo."""
    command = [sys.executable, "-m", "visionattn.cli", *map(str, arguments)]
    sys.stdout.write(f"\n$ visionattn {' '.join(command[3:])}\n")
    sys.stdout.flush()
    done = subprocess.run(command)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    sys.exit(main())
