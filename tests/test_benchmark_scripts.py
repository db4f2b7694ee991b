# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of the kernels, as far as a machine without a GPU can run them."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from visionattn.kernels import LocalPattern, local_attention
from visionattn.tuning import recording

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gates  # noqa: E402
import problems  # noqa: E402


def script(name, *arguments):
    """Run a script as from the command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    script("kernels.py", "--device", "cpu", "--smoke", "--rounds", 1, "--output", folder)
    return folder


def test_every_contender_computes_the_same_function_and_is_timed(smoke):
    content = json.loads((smoke / "cpu" / "kernels.json").read_text())
    assert content["machine"]["torch"] == torch.__version__
    assert min(content["ceilings"].values()) > 0
    records = content["records"]
    assert len(records) == 2 * 7 * len(problems.SMOKE)
    for r in records:
        if "left_out" in r:  # FlexAttention has no backward on a CPU
            assert r["contender"] == "natten" or (r["contender"], r["mode"]) == ("flex", "forward+backward"), r
            continue
        assert r["ms"] > 0 and r["tflops"] > 0
        assert (r["error"] is None) if r["contender"] == "dense" else r["error"] < 1e-5, r


def test_the_roofline_is_drawn_from_the_file(smoke):
    pytest.importorskip("matplotlib")
    script("kernels.py", "--plot", "--output", smoke)
    for suffix in ("png", "svg"):
        assert (smoke / "cpu" / f"roofline.{suffix}").stat().st_size > 10_000


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
@pytest.mark.parametrize("name", ["kernels.py", "gpu_check.py", "sanitize.py"])
def test_without_a_gpu_one_line_says_so(name):
    with pytest.raises(SystemExit, match=r"^[^\n]*CUDA[^\n]*$"):
        script(name)


def test_useful_work_is_that_of_the_definition():
    causal = problems.Problem("", LocalPattern(3, dilation=2, causal=True), (9,), 2, 3, 16)
    # Groups of 5 and 4 positions: queries see 1, 2, 3, 3, 3 and 1, 2, 3, 3 keys.
    assert causal.pairs == 2 * 3 * (12 + 9)
    window = problems.Problem("", LocalPattern(7, 7, boundary="pad"), (14, 21), 1, 1, 32)
    assert window.pairs == 14 * 21 * 49
    assert window.flops(False) == 4 * 14 * 21 * 49 * 32 and window.flops(True) == 3.5 * window.flops(False)
    assert window.ideal_bytes(2, False) == 4 * 14 * 21 * 32 * 2
    assert problems.Problem("", LocalPattern(80, 16), (256, 256), 1, 1, 128).density == pytest.approx(1 / 10.24)


def test_every_listed_problem_is_a_legal_call():
    for problem in problems.chosen(list(problems.LISTS), quick=False):
        shape = (problem.batch, *problem.size, 3, problem.heads, problem.head_dim)
        q, k, v = torch.empty(shape, device="meta", dtype=torch.bfloat16).unbind(-3)
        with recording():  # checks the arguments, computes nothing
            assert local_attention(q, k, v, problem.pattern).shape == q.shape
    assert problems.chosen(["swin", "nat"], quick=True)


def record(contender, mode, ms, gates, density=1.0):
    return {"list": "l", "problem": "p", "dtype": "bf16", "mode": mode, "contender": contender, "ms": ms,
            "gates": gates, "density": density}  # fmt: skip


def test_gates_compare_with_the_right_contender_in_the_right_direction():
    promised = ["flex", "backward", "sparse"]
    found = gates.check(
        [
            record("visionattn", "forward", 1.0, promised, density=0.1),
            record("visionattn", "forward+backward", 5.0, promised, density=0.1),
            record("flex", "forward", 1.9, promised),
            record("flex", "forward+backward", 10.0, promised),
            record("dense", "forward", 8.0, promised),
        ],
        [
            {"model": "va_nat_tiny", "accelerated": False, "train": False, "images_per_second": 95.0},
            {"model": "va_swin_tiny", "accelerated": False, "train": False, "images_per_second": 100.0},
            {"model": "va_swin_tiny", "accelerated": False, "train": True, "images_per_second": None},
        ],
    )
    assert [(g.name, pytest.approx(g.found), g.kept) for g in found] == [
        ("over flex, forward", 1.9, False),
        ("share of the promised speed-up", 0.8, True),
        ("over flex, forward+backward", 2.0, True),
        ("backward over forward", 4.0, False),
        ("images/s, inference", 0.95, True),
    ]
