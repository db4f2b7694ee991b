# SPDX-License-Identifier: Apache-2.0
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from visionattn import tuning
from visionattn.kernels import LocalPattern, halo_attention, neighborhood_attention, tiles, window_attention
from visionattn.kernels.tiles import DEVICES, LocalProblem

ROOT = Path(__file__).resolve().parents[1]
SM90 = DEVICES["sm_90"]
NEIGHBORS = LocalProblem(LocalPattern(7), (28, 28), (28, 28), 32, 32, 2, bias=True)
WINDOWS = LocalProblem(LocalPattern(7, 7, boundary="pad"), (28, 28), (28, 28), 32, 32, 2, bias=True)


@pytest.fixture
def tiles_file(tmp_path, monkeypatch):
    path = tmp_path / "tiles.json"
    monkeypatch.setenv(tiles.CACHE_VARIABLE, str(path))
    tiles.measured.cache_clear()
    tiles.tiles.cache_clear()
    yield path
    tiles.measured.cache_clear()
    tiles.tiles.cache_clear()


def outcome_of(problem, tiling):
    key = tiles.key_of(tiles.canonical(problem), SM90)
    return tuning.Outcome(key, problem, tiling, tiling, {"forward": 2.0}, {"forward": 1.0})


def another_tiling(problem):
    """Not the model's choice, so that finding it means that the file was read."""
    static = tuning.static_tiling(problem, SM90)
    forward = tuning.candidates(problem, SM90, "forward", 5)[-1]
    return static._replace(forward=forward._replace(warps=1, stages=3))


class Mixed(nn.Module):
    """All forms, on the views of one packed projection."""

    def forward(self, x):
        q, k, v = x.permute(0, 2, 3, 1).unflatten(3, (3, 2, 4)).unbind(3)
        bias = torch.empty(2, 5, 5, device=x.device)
        tables = [torch.empty(11, 4, device=x.device)] * 2
        q = neighborhood_attention(q, k, v, 3, bias=bias)
        q = window_attention(q, k, v, 4, shift=2)
        q, _ = neighborhood_attention(q, k, v, 3, bias=bias, return_lse=True)
        return halo_attention(q, k, v, 4, 1, rel_tables=tables)


def test_the_problems_of_a_forward_are_found_without_computing_it():
    calls = tuning.calls_of(Mixed(), (24, 8, 12), batch=5)
    found = tuning.distinct(calls, torch.bfloat16, SM90)
    assert len(calls) == 4
    assert list(found) == [
        "sm_90/k3/8x12/d4-4/b2-bias",
        "sm_90/k4-s4-r2-pad/8x12/d4-4/b2",
        "sm_90/k6x6-s4x4-pad/8x12/d4-4/b2-rel",
    ]
    q, k, v = next(iter(found.values())).inputs[:3]
    assert q.shape == (5, 8, 12, 2, 4)
    real = tuning._materialised(calls[0].inputs, torch.bfloat16, torch.device("cpu"))
    assert [t.stride() for t in real[:3]] == [t.stride() for t in (q, k, v)]
    assert len({t.untyped_storage().data_ptr() for t in real[:3]}) == 1
    assert real.bias.dtype == torch.float32
    assert real.q.dtype == torch.bfloat16 and real.q.float().std() > 0.5


def test_recording_ends_with_the_block():
    q = torch.randn(1, 5, 1, 4)
    with pytest.raises(ValueError, match="kernel_size=7"), tuning.recording():
        neighborhood_attention(q, q, q, 7)
    assert torch.allclose(neighborhood_attention(q, q, q, 5), torch.nn.functional.scaled_dot_product_attention(
        *[q.transpose(1, 2)] * 3).transpose(1, 2), atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("problem", [NEIGHBORS, WINDOWS], ids=["neighborhood", "windows"])
@pytest.mark.parametrize("kernel", tiles.KERNELS)
def test_candidates_are_the_cheapest_by_the_model_in_order(problem, kernel):
    flags = dict(of_keys=kernel == "backward_key", backward=kernel != "forward")
    found = tuning.candidates(problem, SM90, kernel, 6)
    costs = [tiles.cost(problem, tile, SM90, **flags) for tile in found]
    assert len(set(found)) == 6 and costs == sorted(costs)
    more = tuning.candidates(problem, SM90, kernel, 7)
    assert more[:6] == found and tiles.cost(problem, more[6], SM90, **flags) >= costs[-1]


def test_written_tiles_are_what_the_kernels_then_get(tiles_file):
    mine = another_tiling(NEIGHBORS)
    static = tiles.tiles(NEIGHBORS, SM90)
    assert mine != static == tuning.static_tiling(NEIGHBORS, SM90)
    tuning.write([outcome_of(NEIGHBORS, mine)], tiles_file, tuning.Settings())
    assert tiles.tiles(NEIGHBORS, SM90) == mine
    assert tuning.static_tiling(NEIGHBORS, SM90) == static  # the comparison stays with the model of the cost
    assert tiles.tiles(WINDOWS, SM90) == tuning.static_tiling(WINDOWS, SM90)


def test_a_file_grows_and_newer_measurements_win(tiles_file):
    older, newer = tuning.static_tiling(NEIGHBORS, SM90), another_tiling(NEIGHBORS)
    windows = tuning.static_tiling(WINDOWS, SM90)
    tuning.write([outcome_of(NEIGHBORS, older), outcome_of(WINDOWS, windows)], tiles_file, tuning.Settings())
    tuning.write([outcome_of(NEIGHBORS, newer)], tiles_file, tuning.Settings(batch=3))
    assert (tiles.tiles(NEIGHBORS, SM90), tiles.tiles(WINDOWS, SM90)) == (newer, windows)
    content = json.loads(tiles_file.read_text())
    record = content["measurements"][tiles.key_of(NEIGHBORS, SM90)]
    assert (record["static_ms"], record["best_ms"]) == ({"forward": 2.0}, {"forward": 1.0})
    assert record["settings"]["batch"] == 3 and record["machine"]["torch"] == torch.__version__
    assert [p.name for p in tiles_file.parent.iterdir()] == ["tiles.json"]


@pytest.mark.parametrize("content", ["{", "[]", '{"tilings": {"a": {"forward": 1}}}', '{"tilings": {"a": {}}}'])
def test_a_file_of_something_else_is_left_alone_and_named(tiles_file, content):
    tiles_file.write_text(content)
    with pytest.raises(ValueError, match="tiles.json holds no measurements of tiles"):
        tuning.write([outcome_of(NEIGHBORS, another_tiling(NEIGHBORS))], tiles_file, tuning.Settings())
    assert tiles_file.read_text() == content


def test_wrong_numbers_are_a_difference():
    exact = torch.randn(20)
    unwritten = exact.clone()
    unwritten[3] = float("nan")
    assert tuning._difference({"out": (exact.bfloat16(), exact)}, 2e-2) is None
    assert "out is off by" in tuning._difference({"lse": (exact, exact), "out": (1.1 * exact, exact)}, 2e-2)
    assert "nan" in tuning._difference({"out": (unwritten, exact)}, 2e-2)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"dtype": "float64"}, "dtype='float64' must be one of bf16, fp16, fp32"), ({"top": 0}, "top=0")],
)
def test_bad_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        tuning.Settings(**values)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_tuning_says_what_it_needs(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    testing = pytest.importorskip("typer.testing")
    from visionattn import cli

    done = testing.CliRunner().invoke(cli.app, ["tune", "va_nat_mini"])
    assert done.exit_code == 1
    assert "needs a CUDA or ROCm device" in done.output


# In an interpreter of its own: Triton decides when it is imported whether kernels are compiled.
WHOLE_PATH = """
import functools, sys, torch
from visionattn import benchmarking, cli, tuning
from visionattn.kernels import tiles, neighborhood_attention, window_attention
from visionattn.kernels.tiles import DEVICES

path, form = sys.argv[1:]

class Model(torch.nn.Module):
    def forward(self, x):
        q, k, v = x.permute(0, 2, 3, 1).unflatten(3, (3, 1, 8)).unbind(3)
        if form == "window":
            return window_attention(q, k, v, 2, bias=torch.empty(1, 3, 3, device=x.device))
        return neighborhood_attention(q, k, v, 3, bias=torch.empty(1, 5, 5, device=x.device))

benchmarking.find_models = lambda names: names
benchmarking.build = lambda name, size: (Model(), (24, 4, 4))
tuning.Settings = functools.partial(tuning.Settings, rounds=1)
tuning.REFINED = 0
outcomes, tune_problem = [], tuning.tune_problem

def kept(key, bench, top, rounds):
    outcomes.append((bench, tune_problem(key, bench, top, rounds)))
    return outcomes[-1][1]

tuning.tune_problem = kept
cli.app(["tune", "model", "--batch", "1", "--dtype", "fp32", "--top", "1", "-o", path], standalone_mode=False)
((bench, outcome),) = outcomes
assert not outcome.rejected, outcome.rejected
assert all(ms > 0 for ms in outcome.best_ms.values())
assert outcome.static.fused == (form == "window")
assert tiles.tiles(bench.problem, DEVICES["sm_90"]) == outcome.best == tiles.measured()[outcome.key]
# A tile that gives wrong numbers never wins: here every one, as the expectation is another function.
bench.out = bench.out + 1
try:
    tune_problem(outcome.key, bench, 1, 1)
except RuntimeError as error:
    assert "no tile of forward gives" in str(error) and "out is off by" in str(error)
else:
    raise AssertionError("wrong numbers were accepted")
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["neighborhood", "window"])
def test_the_command_launches_checks_and_writes_every_kernel(tmp_path, form):
    pytest.importorskip("triton")
    pytest.importorskip("typer")
    path = tmp_path / "tiles.json"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "COLUMNS": "200", "CUDA_VISIBLE_DEVICES": "",
                   tiles.CACHE_VARIABLE: str(path)}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", WHOLE_PATH, str(path), form], capture_output=True, text=True,
                          env=environment, cwd=ROOT)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "backward_query" in done.stdout and f"written: {path}" in done.stdout
    ((_, record),) = json.loads(path.read_text())["measurements"].items()
    assert record["interpreted"] is True
    assert all(f"{ms:.4f}" in done.stdout for ms in record["best_ms"].values())
