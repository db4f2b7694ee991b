# SPDX-License-Identifier: Apache-2.0
import json
import re

import numpy as np
import pytest
import torch

from visionattn import benchmarking
from visionattn.benchmarking import Settings, benchmark, build, find_models, write_json

QUICK = Settings(device="cpu", rounds=3, round_seconds=0.0)
SWIN = "swin_tiny_patch4_window7_224"


def test_every_model_size_and_batch_is_measured_in_turns(monkeypatch):
    order = []
    measure = benchmarking._Run.measure

    def noted(run):
        order.append((run.facts["model"], run.facts["batch"]))
        measure(run)

    monkeypatch.setattr(benchmarking._Run, "measure", noted)
    told = []
    found = benchmark(["test_resnet", "test_vit"], [32, 64], [1, 2], settings=QUICK, progress=told.append)
    cases = [(m, s, b) for m in ("test_resnet", "test_vit") for s in (32, 64) for b in (1, 2)]
    assert [(r.model, r.input_size[1], r.batch) for r in found] == cases
    assert order == [(model, batch) for model, _, batch in cases] * QUICK.rounds
    assert told[-1] == "round 3 of 3"
    for result in found:
        assert result.error is None
        assert 0 < result.latency_q1_ms <= result.latency_ms <= result.latency_q3_ms
        assert result.images_per_second == pytest.approx(1000 * result.batch / result.latency_ms)
        assert (result.rounds, result.steps, result.peak_mib) == (3, 1, None)


def test_quartiles_are_of_the_rounds():
    run = benchmarking._Run({"model": "m", "accelerated": False, "input_size": None, "batch": 4}, QUICK)
    run.seconds = list(np.random.default_rng().permutation([0.1, 0.2, 0.3, 0.4, 0.9]))
    result = run.result()
    assert (result.latency_q1_ms, result.latency_ms, result.latency_q3_ms) == pytest.approx((200, 300, 400))
    assert result.images_per_second == pytest.approx(4 / 0.3)


def test_cost_and_published_accuracy_stand_beside_the_speed():
    result = benchmark(["va_nat_mini"], batches=[1], settings=QUICK)[0]
    # As the paper has them: 20 M, 2.7 G, 81.8 %.
    assert (round(result.parameters / 1e6), round(result.gmacs, 1)) == (20, 2.7)
    assert (result.top1, result.top1_size) == (81.8, 224)


def test_accelerate_adds_a_row_only_where_it_changes_something():
    found = benchmark([SWIN, "test_resnet"], [64], [1], accelerate=True, settings=QUICK)
    assert [(r.model, r.accelerated) for r in found] == [(SWIN, False), (SWIN, True), ("test_resnet", False)]
    assert found[0].gmacs == found[1].gmacs


def test_training_steps_change_the_weights_and_leave_no_gradients():
    model, size = build("test_resnet", 32)
    before = [p.detach().clone() for p in model.parameters()]
    step = benchmarking._step(model.train(), 2, size, Settings(train=True, device="cpu", dtype="bfloat16"))
    step()
    assert any(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert benchmark(["test_resnet"], [32], [2], settings=Settings(train=True, device="cpu", rounds=1))[0].error is None


def test_what_cannot_run_says_why_and_stops_no_other():
    # Blocks of 8 pixels at stride 32: timm asserts it without a word.
    failed, fine = benchmark(["halonet26t", "test_vit"], [32], [1], settings=QUICK)
    assert failed.error == "AssertionError: _assert(H % self.block_size == 0, '')"
    assert failed.latency_ms is None
    assert fine.error is None


def test_the_automatic_batch_halves_as_memory_does(monkeypatch):
    model, size = build("test_vit", 64)
    model.eval()
    kept = benchmarking._kept_bytes(model, size, QUICK)
    batches = []
    for images in (7.9, 4.1, 0.3, 1e6):
        monkeypatch.setattr(benchmarking, "_free_memory", lambda images=images: int(2 * images * kept))
        batches.append(benchmarking._largest_batch(model, size, QUICK))
    assert batches == [4, 4, 1, 64]


def test_the_file_holds_results_settings_and_machine(tmp_path):
    results = benchmark(["test_vit"], [64], [1], settings=QUICK)
    write_json(results, QUICK, tmp_path / "b.json")
    content = json.loads((tmp_path / "b.json").read_text())
    assert content["results"][0]["images_per_second"] == results[0].images_per_second
    assert content["settings"]["rounds"] == 3
    assert content["machine"]["torch"] == torch.__version__
    assert content["machine"]["threads"] == torch.get_num_threads()
    assert content["machine"]["device"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", content["machine"]["date"])


def test_patterns_stand_for_models_of_the_zoo_and_of_timm():
    assert find_models(["va_nat_t*", "va_nat_tiny", "test_vit"]) == ["va_nat_tiny", "test_vit"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: benchmark(["va_nat_tny"]), "va_nat_tiny"),
        (lambda: benchmark([]), "names is empty"),
        (lambda: benchmark(["test_vit"], sizes=[0]), "sizes holds 0"),
        (lambda: benchmark(["test_vit"], batches=[2.5]), "batches holds 2.5"),
        (lambda: benchmark(["test_vit"], batches=[]), "batches is empty"),
        (lambda: Settings(dtype="int8"), "dtype='int8' must be one of"),
        (lambda: Settings(device="toaster"), "device='toaster' must be"),
        (lambda: Settings(rounds=0), "rounds=0 must be"),
        (lambda: Settings(round_seconds=-1.0), "round_seconds=-1.0"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.gpu
@pytest.mark.parametrize("train", [False, True])
def test_memory_and_the_largest_batch_on_a_gpu(monkeypatch, train):
    monkeypatch.setattr(benchmarking, "LARGEST_BATCH", {"cuda": 8, "cpu": 8})
    settings = Settings(train=train, device="cuda", dtype="bfloat16", rounds=2, round_seconds=0.0)
    small, large = benchmark([SWIN], [64], [1, "auto"], settings=settings)
    assert (small.error, large.error, large.batch) == (None, None, 8)
    assert 28 * (4 if train else 2) < small.peak_mib < large.peak_mib
