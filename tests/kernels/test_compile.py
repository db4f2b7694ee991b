# SPDX-License-Identifier: Apache-2.0
"""The kernels compiled for GPUs that need not be there: no spills, no more shared memory than a device has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
REPORT = Path(__file__).parents[2] / "benchmarks" / "compile_report.py"


def report(*arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, str(REPORT), "--check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    ["window7-shifted/", "halo8-3/", "neighborhood7-extra-gqa/"],
)
def test_kernels_compile_without_spills(case):
    done = report("--arch", "sm_90", "--dtype", "bf16", "--head-dim", "32", "--only", case)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "kernels, 0 faults" in done.stdout and "mma" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_every_kind_of_kernel_compiles_without_spills(arch):
    done = report("--arch", arch, "--dtype", "bf16", "fp32")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_interpreter_compiles_nothing():
    done = subprocess.run([sys.executable, str(REPORT)], capture_output=True, text=True, check=False,
                          env={**os.environ, "TRITON_INTERPRET": "1"})  # fmt: skip
    assert done.returncode != 0 and "TRITON_INTERPRET=1 is set" in done.stderr
