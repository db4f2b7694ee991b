# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")

from visionattn.openmmlab import load_config, read_checkpoint, tasks  # noqa: E402
from visionattn.openmmlab.classifier import TimmClassifier, TopKAccuracy  # noqa: E402

TINY = Path(__file__).parent / "tiny.py"


def run(work_dir, *overrides, **kwargs):
    return tasks.train(load_config(TINY, overrides), work_dir, **kwargs)


def weights(work_dir):
    return read_checkpoint(work_dir / "last.pth")["state_dict"]


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return folder, run(folder)


class Stopped(Exception):
    pass


def stop_at(monkeypatch, hook, method, step):
    """Let a run break off in the middle, as if its process had been killed."""
    original = getattr(hook, method)

    def stopping(self, runner, *args, **kwargs):
        original(self, runner, *args, **kwargs)
        if runner.iter == step:
            raise Stopped

    monkeypatch.setattr(hook, method, stopping)


def test_a_run_leaves_checkpoints_metrics_curves_and_a_summary(finished):
    folder, summary = finished
    assert summary == json.loads((folder / "summary.json").read_text())
    assert summary["last"]["epoch"] == 4
    assert summary["parameters"] == sum(v.numel() for v in weights(folder).values())
    assert cv2.imread(str(folder / "curves.png")).std() > 1
    assert not list(folder.glob(".*"))
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["mode"] == "val"] == [3, 6, 9, 12]
    assert [r["step"] for r in records if r["mode"] == "train"] == [2, 3, 4, 6, 8, 9, 10, 12]
    assert all(r["loss"] > 0 and r["lr"] >= 0 and 0 <= r["top1"] <= 100 for r in records if r["mode"] == "train")
    best = max((r for r in records if r["mode"] == "val"), key=lambda r: r["top1"])
    assert summary["best"]["epoch"] == best["epoch"]
    assert read_checkpoint(folder / "best.pth")["meta"]["metrics"]["top1"] == pytest.approx(best["top1"])


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(finished, tmp_path):
    folder, summary = finished
    again = run(tmp_path / "again")
    assert_same_weights(weights(tmp_path / "again"), weights(folder))
    assert again["last"] == summary["last"]
    run(tmp_path / "other", "randomness.seed=4")
    assert not torch.equal(weights(tmp_path / "other")["model.head.weight"], weights(folder)["model.head.weight"])


def test_loader_workers_do_not_change_the_result(finished, tmp_path):
    run(tmp_path, "train_dataloader.num_workers=2", "train_dataloader.persistent_workers=True")
    assert_same_weights(weights(tmp_path), weights(finished[0]))


def test_a_resumed_run_ends_as_if_never_stopped(finished, tmp_path, monkeypatch):
    from visionattn.openmmlab.hooks import MetricsHook

    folder, summary = finished
    with monkeypatch.context() as patch:
        stop_at(patch, MetricsHook, "after_train_iter", 7)  # in the middle of epoch 3
        with pytest.raises(Stopped):
            run(tmp_path)
    assert read_checkpoint(tmp_path / "last.pth")["meta"]["epoch"] == 2
    resumed = run(tmp_path, resume=True)
    assert_same_weights(weights(tmp_path), weights(folder))
    assert resumed["last"] == summary["last"]
    assert resumed["best"] == summary["best"]
    assert (tmp_path / "metrics.jsonl").read_text() == (folder / "metrics.jsonl").read_text()


def test_resuming_without_a_checkpoint_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"last\.pth does not exist"):
        run(tmp_path, resume=True)


def test_a_failed_write_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch):
    run(tmp_path, "train_cfg.max_epochs=1")
    before = (tmp_path / "last.pth").read_bytes()

    def torn(checkpoint, path):
        Path(path).write_bytes(b"half a checkpoint")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="no space left"):
        run(tmp_path, "train_cfg.max_epochs=2", resume=True)
    assert (tmp_path / "last.pth").read_bytes() == before
    assert sorted(p.name for p in tmp_path.glob("*.pth")) == ["best.pth", "last.pth"]
    assert not list(tmp_path.glob(".*"))


def test_evaluation_of_the_reloaded_checkpoint_measures_what_training_did(finished, tmp_path):
    folder, summary = finished
    for which in ("last", "best"):
        output = tmp_path / which / "metrics.json"
        result = tasks.evaluate(load_config(TINY), folder / f"{which}.pth", output)
        assert result == json.loads(output.read_text())
        assert result["images"] == 32
        assert {"epoch": result["epoch"], **result["metrics"]} == summary[which]


def test_predictions_agree_with_the_evaluation(finished):
    folder, _ = finished
    predictions = tasks.predict(load_config(TINY), folder / "last.pth", samples=7)
    assert len(predictions) == 7
    cfg = load_config(TINY, ["test_dataloader.num_batch_per_epoch=15", "test_dataloader.batch_size=24"])
    everything = tasks.predict(cfg, folder / "last.pth", samples=360)
    right = sum(p.label == p.truth for p in everything)
    result = tasks.evaluate(cfg, folder / "last.pth", folder / "all" / "metrics.json")
    assert 100 * right / 360 == pytest.approx(result["metrics"]["top1"])


def test_image_files_are_predicted_and_one_that_is_none_is_named(finished, tmp_path, rng):
    folder, _ = finished
    image = tmp_path / "photo.png"
    cv2.imwrite(str(image), rng.integers(0, 256, (37, 51, 3), dtype=np.uint8))
    (prediction,) = tasks.predict(load_config(TINY), folder / "last.pth", [image])
    assert prediction.source == str(image)
    assert prediction.truth is None
    assert 0.1 <= prediction.confidence <= 1
    text = tmp_path / "text.png"
    text.write_text("not an image")
    with pytest.raises(ValueError, match=r"text\.png is not an image"):
        tasks.predict(load_config(TINY), folder / "last.pth", [image, text])


@pytest.fixture
def rng():
    return np.random.default_rng()


def test_bad_checkpoints_are_refused_with_the_reason(finished, tmp_path):
    folder, _ = finished
    whole = (folder / "last.pth").read_bytes()
    cut = tmp_path / "cut.pth"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.pth is truncated or not a PyTorch file"):
        tasks.evaluate(load_config(TINY), cut, tmp_path / "x" / "m.json")
    text = tmp_path / "text.pth"
    text.write_text("hello")
    with pytest.raises(ValueError, match=r"text\.pth is truncated or not a PyTorch file"):
        read_checkpoint(text)
    plain = tmp_path / "plain.pth"
    torch.save({"weight": torch.randn(3)}, plain)
    with pytest.raises(ValueError, match="has no 'state_dict' of tensors"):
        read_checkpoint(plain)
    with pytest.raises(FileNotFoundError, match=r"none\.pth does not exist"):
        read_checkpoint(tmp_path / "none.pth")


def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_never_runs(tmp_path):
    class Code:
        def __reduce__(self):
            return subprocess.call, (["touch", str(tmp_path / "ran")],)

    torch.save({"state_dict": {}, "meta": Code()}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="could run code"):
        read_checkpoint(tmp_path / "code.pth")
    assert not (tmp_path / "ran").exists()


def test_a_foreign_checkpoint_lists_what_is_missing_unexpected_and_mis_shaped(finished, tmp_path):
    content = read_checkpoint(finished[0] / "last.pth")
    state = content["state_dict"]
    state["model.stranger"] = torch.randn(2)
    del state["model.norm.weight"]
    state["model.head.weight"] = torch.randn(10, 5)
    torch.save(content, tmp_path / "foreign.pth")
    with pytest.raises(ValueError) as error:
        tasks.evaluate(load_config(TINY), tmp_path / "foreign.pth", tmp_path / "m.json")
    assert "1 missing (model.norm.weight)" in str(error.value)
    assert "1 unexpected (model.stranger)" in str(error.value)
    assert "1 mis-shaped (model.head.weight (10, 5) instead of (10, 64))" in str(error.value)


def write_images(root, rng, classes, count):
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            shade = 200 if name == classes[0] else 20
            image = rng.integers(shade, shade + 50, (29, 23, 3), dtype=np.uint8)
            cv2.imwrite(str(root / name / f"{i}.png"), image)


FOLDER = (
    "train_dataloader.num_batch_per_epoch=None",
    "val_dataloader.num_batch_per_epoch=None",
    "train_cfg.max_epochs=2",
)


def test_a_folder_of_class_folders_replaces_the_data(tmp_path, rng):
    write_images(tmp_path / "data", rng, ["ant", "bee", "cat"], 10)
    cfg = load_config(TINY, FOLDER, tmp_path / "data")
    assert cfg.model.num_classes == 3
    tasks.train(cfg, tmp_path / "run")
    content = read_checkpoint(tmp_path / "run" / "last.pth")
    assert content["meta"]["dataset_meta"]["classes"] == ["ant", "bee", "cat"]
    assert content["state_dict"]["model.head.weight"].shape[0] == 3
    # The checkpoint knows its classes, so that prediction needs no data.
    image = tmp_path / "data" / "ant" / "0.png"
    (prediction,) = tasks.predict(load_config(TINY), tmp_path / "run" / "last.pth", [image])
    assert prediction.label in ("ant", "bee", "cat")
    (tmp_path / "data" / "cat").rename(tmp_path / "data" / "dog")
    with pytest.raises(ValueError, match="not in both: cat, dog"):
        cfg = load_config(TINY, FOLDER, tmp_path / "data")
        tasks.evaluate(cfg, tmp_path / "run" / "last.pth", tmp_path / "m.json")


def test_training_skips_bad_images_and_names_them_or_stops(tmp_path, rng):
    write_images(tmp_path / "data", rng, ["ant", "bee"], 5)
    bad = [tmp_path / "data" / "ant" / f"{i}.png" for i in range(5)]
    for path in bad:
        path.write_bytes(b"\x89PNG but no more")
    summary = tasks.train(load_config(TINY, FOLDER, tmp_path / "data"), tmp_path / "run")
    assert summary["skipped_images"] == [str(path) for path in bad]
    overrides = (*FOLDER, "train_dataloader.dataset.on_bad_image=raise")
    with pytest.raises(ValueError, match=r"ant.\d\.png is not an image"):
        tasks.train(load_config(TINY, overrides, tmp_path / "data"), tmp_path / "stops")


def test_a_loss_that_is_no_number_stops_the_run_with_advice(tmp_path):
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) at step \d.*lower optim_wrapper"):
        run(tmp_path, "optim_wrapper.optimizer.lr=1e30")


def test_mixed_images_train_and_layer_decay_lowers_the_stem(tmp_path):
    overrides = (
        "train_cfg.max_epochs=1",
        "train_dataloader.batch_size=7",
        "optim_wrapper.paramwise_cfg.layer_decay=0.5",
    )
    cfg = load_config(TINY, overrides)
    cfg.model.mixup = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}
    summary = tasks.train(cfg, tmp_path)
    assert summary["last"]["epoch"] == 1
    groups = read_checkpoint(tmp_path / "last.pth")["optimizer"]["param_groups"]
    rates = {group["initial_lr"] for group in groups}
    assert max(rates) == pytest.approx(3e-3)
    assert min(rates) < 1e-3
    assert {group["weight_decay"] for group in groups} == {0.0, 0.05}


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="label_smoothing=1.5"):
        TimmClassifier("test_vit", 10, label_smoothing=1.5)
    with pytest.raises(ValueError, match="test_vit"):
        TimmClassifier("test_vti", 10)
    with pytest.raises(ValueError, match=r"topk=\(0,\)"):
        TopKAccuracy(topk=(0,))


def test_accuracy_counts_ties_and_nans_against_the_model():
    metric = TopKAccuracy(topk=(1, 2))
    scores = torch.randn(5, 4, dtype=torch.float64).softmax(-1)
    order = scores.argsort(descending=True)
    samples = [{"scores": scores[i], "label": int(order[i, rank])} for i, rank in enumerate((0, 0, 1, 3, 2))]
    samples.append({"scores": torch.full((4,), 0.25), "label": 0})
    samples.append({"scores": torch.full((4,), float("nan")), "label": 0})
    metric.process(None, samples)
    metrics = metric.compute_metrics(metric.results)
    assert metrics["top1"] == pytest.approx(100 * 2 / 7)
    assert metrics["top2"] == pytest.approx(100 * 3 / 7)
