# SPDX-License-Identifier: Apache-2.0
"""Everything that only a GPU can show, step by step; each step's outcome stands in a table at the end.

make gpu-check                                     # all steps
python benchmarks/gpu_check.py --step tests sanitize
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from visionattn.kernels.tiles import DEVICES, device_of

HERE = Path(__file__).resolve().parent


def architecture() -> str | None:
    """The compiler's name of this device, or of the nearest that the compile report knows; None without one."""
    if torch.version.hip or not torch.cuda.is_available():
        return None
    name = device_of(torch.device("cuda")).name
    known = sorted((d for d in DEVICES if d.startswith("sm_")), key=lambda d: int(d[3:]))
    below = [d for d in known if int(d[3:]) <= int(name[3:])]
    return below[-1] if below else None


def steps(pytest_arguments: list[str]) -> dict[str, list[str] | None]:
    """Command of each step; None where it does not apply here."""
    python, arch = sys.executable, architecture()
    report = [python, str(HERE / "compile_report.py"), "--check", "--arch", arch] if arch else None
    return {
        "tests": [python, "-m", "pytest", "-m", "gpu", *pytest_arguments],
        "kernels": [python, str(HERE / "kernels.py"), "--quick", "--check"],
        "models": [python, str(HERE / "kernels.py"), "--list", "models", "--rounds", "7", "--check"],
        "compile": report,
        "sanitize": [python, str(HERE / "sanitize.py")],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", nargs="+", help="steps to run; all by default", choices=list(steps([])))
    parser.add_argument("--pytest", default="", help="more arguments for pytest")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu-check needs a CUDA or ROCm device, and PyTorch sees none")
    commands = steps(shlex.split(arguments.pytest))
    table = Table("step", "outcome", "seconds", title=f"gpu-check on {torch.cuda.get_device_name()}")
    failed = False
    for name in arguments.step or commands:
        command = commands[name]
        if command is None:
            table.add_row(name, "does not apply to this device", "–")
            continue
        print(f"== {name}: {shlex.join(command)}", flush=True)
        begin = time.perf_counter()
        status = subprocess.run(command, cwd=HERE.parent, check=False).returncode
        outcome = "ok" if status == 0 else f"FAILED (exit status {status})"
        failed |= status != 0
        table.add_row(name, outcome, f"{time.perf_counter() - begin:.0f}")
    Console().print(table)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
