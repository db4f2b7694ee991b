# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of kernels and models, as far as a machine without a GPU can run them."""

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
import models_cpu  # noqa: E402
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


@pytest.fixture
def denormals():
    yield
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("denormals")
def test_models_are_measured_beside_timms_and_not_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(models_cpu, "REFERENCES", ("mobilenetv2_050", "resnet18"))
    monkeypatch.setattr(models_cpu, "SLOW", 0.0)
    out = tmp_path / "models.json"
    arguments = ["--models", "va_triplet_mobilenetv2_k3", "--batch", "1", "--rounds", "1", "--out", str(out)]
    models_cpu.main(arguments)
    content = json.loads(out.read_text())
    assert content["machine"]["clock"] == "wall clock"
    (row,) = content["records"]
    assert row["reference"] == "mobilenetv2_050" and row["rounds"] == 1 and not row["compiled"]
    per_mac = row["ms"] / row["gmacs"], row["reference_ms"] / row["reference_gmacs"]
    assert row["ratio"] == pytest.approx(per_mac[0] / per_mac[1], rel=0.05)
    assert 0 < sum(row["operators"].values()) <= 1
    monkeypatch.setattr(models_cpu, "REASONS", {"triplet_mobilenetv2": "small maps"})
    models_cpu.main(arguments)
    assert json.loads(out.read_text())["records"] == [row]
    assert "va_triplet_mobilenetv2_k3" in capsys.readouterr().out
    out.write_text(json.dumps(content | {"machine": content["machine"] | {"threads": 999}}))
    assert models_cpu.read(out, content["machine"]) == {}
    assert "another machine" in capsys.readouterr().out


@pytest.mark.usefixtures("denormals")
def test_models_that_fail_are_rows_with_the_reason(tmp_path, monkeypatch):
    def broken(name, *_):
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(models_cpu, "_step", broken)
    monkeypatch.setattr(models_cpu, "gmacs", {"va_nat_mini": 2.7, "resnet18": 1.8, "resnet50": 4.1}.__getitem__)
    monkeypatch.setattr(models_cpu, "REFERENCES", ("resnet18", "resnet50"))
    models_cpu.main(["--models", "va_nat_mini", "--batch", "1", "--out", str(tmp_path / "m.json")])
    (row,) = json.loads((tmp_path / "m.json").read_text())["records"]
    assert row["error"] == "RuntimeError: no such operator" and "ratio" not in row
    assert row["reference"] == "resnet18"  # 1.5 times away, resnet50 1.52 times


def test_one_small_model_stands_for_each_family_of_classifiers(monkeypatch):
    families = ("swin", "pvt", "nat", "dinat", "psa", "mambaout")  # PVT's sizes are counted, the trunk of PSA is none
    monkeypatch.setattr(models_cpu, "FAMILIES", dict.fromkeys(families))
    names = ["va_swin_tiny", "va_pvt_tiny", "va_nat_mini", "va_dinat_mini", "va_mambaout_femto"]
    assert models_cpu.small_models() == names
    monkeypatch.setattr(models_cpu, "LARGEST", 13e6)
    assert models_cpu.small_models() == ["va_mambaout_femto"]


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
