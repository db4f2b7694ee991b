# SPDX-License-Identifier: Apache-2.0
"""Detection and segmentation through the command line's functions, on tiny data."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
typer_testing = pytest.importorskip("typer.testing")

import dense_sets  # noqa: E402

from visionattn import cli  # noqa: E402
from visionattn.openmmlab import load_config, read_checkpoint, tasks  # noqa: E402
from visionattn.openmmlab.config import task_of  # noqa: E402
from visionattn.openmmlab.hooks import MetricsHook  # noqa: E402

HERE = Path(__file__).parent
CONFIGS = {task: HERE / f"tiny_{task}.py" for task in ("detection", "segmentation")}
TASKS = tuple(CONFIGS)
PLACE = {"detection": "epoch", "segmentation": "step"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng()
    dense_sets.write_coco(root / "detection", rng)
    dense_sets.write_ade(root / "segmentation", rng)
    return root


@pytest.fixture(scope="module")
def train(data):
    def run(task, work_dir, *overrides, **kwargs):
        return tasks.train(load_config(CONFIGS[task], overrides, data / task), work_dir, **kwargs)

    return run


@pytest.fixture(scope="module")
def finished(train, tmp_path_factory):
    folders = {task: tmp_path_factory.mktemp(task) for task in TASKS}
    return {task: (folder, train(task, folder)) for task, folder in folders.items()}


def call(*arguments):
    return typer_testing.CliRunner().invoke(cli.app, [str(a) for a in arguments])


def weights(work_dir, name="last"):
    return read_checkpoint(work_dir / f"{name}.pth")["state_dict"]


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


def records(work_dir):
    return [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]


class Stopped(Exception):
    pass


def stop_at(patch, step):
    """Let a run break off after a step, as if its process had been killed."""
    original = MetricsHook.after_train_iter

    def stopping(self, runner, *args, **kwargs):
        original(self, runner, *args, **kwargs)
        if runner.iter + 1 == step:
            raise Stopped

    patch.setattr(MetricsHook, "after_train_iter", stopping)


@pytest.mark.parametrize("task", TASKS)
def test_a_run_leaves_checkpoints_metrics_curves_tensorboard_and_a_summary(task, finished):
    folder, summary = finished[task]
    assert task_of(load_config(CONFIGS[task])) == task
    assert summary == json.loads((folder / "summary.json").read_text())
    assert summary["last"][PLACE[task]] == {"detection": 2, "segmentation": 12}[task]
    assert cv2.imread(str(folder / "curves.png")).std() > 1
    assert list(folder.rglob("events.out.tfevents*"))
    assert not list(folder.glob(".*"))
    lines = records(folder)
    assert [line["step"] for line in lines if line["mode"] == "val"] == {"detection": [4, 8]}.get(task, [6, 12])
    decides = {"detection": "coco/bbox_mAP", "segmentation": "mIoU"}[task]
    best = max((line for line in lines if line["mode"] == "val"), key=lambda line: line[decides])
    assert summary["best"][decides] == pytest.approx(best[decides])
    assert read_checkpoint(folder / "best.pth")["meta"]["metrics"][decides] == pytest.approx(best[decides])
    assert all(line["loss"] > 0 for line in lines if line["mode"] == "train")


@pytest.mark.parametrize("task", TASKS)
def test_a_resumed_run_ends_as_if_never_stopped(task, train, finished, tmp_path, monkeypatch):
    folder, summary = finished[task]
    stopped_at, saved_at = {"detection": (6, 4), "segmentation": (9, 8)}[task]
    with monkeypatch.context() as patch:
        stop_at(patch, stopped_at)
        with pytest.raises(Stopped):
            train(task, tmp_path)
    assert read_checkpoint(tmp_path / "last.pth")["meta"]["iter"] == saved_at
    resumed = train(task, tmp_path, resume="auto")
    assert_same_weights(weights(tmp_path), weights(folder))
    assert (resumed["last"], resumed["best"]) == (summary["last"], summary["best"])
    validations = [[line for line in records(f) if line["mode"] == "val"] for f in (tmp_path, folder)]
    assert validations[0] == validations[1]


def test_resuming_automatically_begins_where_there_is_no_checkpoint(data, train, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"last\.pth does not exist"):
        train("segmentation", tmp_path, resume=True)
    with pytest.raises(ValueError, match="resume='sometimes'"):
        train("segmentation", tmp_path, resume="sometimes")
    arguments = ("train", CONFIGS["segmentation"], "train_cfg.max_iters=2", "--data", data / "segmentation")
    for _ in range(2):
        result = call(*arguments, "--work-dir", tmp_path, "--resume", "auto")
        assert result.exit_code == 0, result.output
    assert "last step 2" in result.output


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_loader_workers_do_not_change_the_result(task, train, finished, tmp_path):
    train(task, tmp_path, "train_dataloader.num_workers=2", "train_dataloader.persistent_workers=True")
    assert_same_weights(weights(tmp_path), weights(finished[task][0]))


@pytest.mark.parametrize("task", TASKS)
def test_evaluation_of_the_reloaded_checkpoint_measures_what_training_did(task, finished, data, tmp_path):
    folder, summary = finished[task]
    target = tmp_path / "m.json"
    # The run's own copy of the config knows the data.
    result = call("evaluate", folder / CONFIGS[task].name, folder / "last.pth", "-o", target)
    assert result.exit_code == 0, result.output
    found = json.loads(target.read_text())
    assert found["images"] == 4
    before = {name: value for name, value in summary["last"].items() if name != PLACE[task]}
    assert {name: found["metrics"][name] for name in before} == before
    if task == "detection":
        assert len(found["metrics"]) == 24
        for kind in ("bbox", "segm"):
            for name in ("mAP", "mAP_50", "mAP_75", "mAP_s", "AR@1", "AR@10", "AR@100", "AR_s@100", "AR_l@100"):
                assert f"coco/{kind}_{name}" in found["metrics"]
            assert found["metrics"][f"coco/{kind}_AR@1"] <= found["metrics"][f"coco/{kind}_AR@10"]
        assert "coco/segm_AR_m@100" in result.output
    else:
        assert set(found["metrics"]) == {"aAcc", "mIoU", "mAcc"}
        assert set(found["classes"]) == set(dense_sets.SEGMENTS)
        ious = [values["IoU"] for values in found["classes"].values() if values["IoU"] is not None]
        assert np.mean(ious) == pytest.approx(found["metrics"]["mIoU"], abs=0.01)
        assert "disc" in result.output


def test_the_twelve_figures_are_pycocotools_own(finished, data, tmp_path):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    folder, _ = finished["detection"]
    prefix = f"test_evaluator.outfile_prefix={tmp_path / 'results'}"
    cfg = load_config(folder / CONFIGS["detection"].name, [prefix])
    metrics = tasks.evaluate(cfg, folder / "last.pth", tmp_path / "m.json")["metrics"]
    truth = COCO(str(data / "detection" / "annotations" / "instances_val2017.json"))
    judge = COCOeval(truth, truth.loadRes(str(tmp_path / "results.bbox.json")), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    ours = [value for name, value in metrics.items() if name.startswith("coco/bbox")]
    assert ours == pytest.approx(judge.stats.tolist(), abs=6e-4)


@pytest.mark.parametrize("task", TASKS)
def test_predictions_are_drawn_beside_the_ground_truth_and_for_files(task, finished, data, tmp_path):
    folder, _ = finished[task]
    config, checkpoint = folder / CONFIGS[task].name, folder / "last.pth"
    result = call("predict", config, checkpoint, "--samples", 3, "--score", 0.1, "-o", tmp_path / "samples.png")
    assert result.exit_code == 0, result.output
    assert cv2.imread(str(tmp_path / "samples.png")).std() > 1
    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), dense_sets.scene(np.random.default_rng(), (61, 67))[0])
    result = call("predict", config, checkpoint, photo, "-o", tmp_path / "photo_out.png", "--score", 0.05)
    assert result.exit_code == 0, result.output
    assert "1 predictions drawn" in result.output
    assert cv2.imread(str(tmp_path / "photo_out.png")).std() > 1
    (one,) = tasks.predict(load_config(config), checkpoint, [photo], score=0.05)
    assert one.truth is None
    if task == "detection":
        assert one.predicted.masks is None or one.predicted.masks.shape[1:] == (61, 67)
        assert (one.predicted.boxes[:, 2:] <= [67, 61]).all() and (one.predicted.scores >= 0.05).all()
    else:
        assert one.predicted.shape == (61, 67)
        assert one.predicted.max() < len(dense_sets.SEGMENTS)


def test_predicted_maps_agree_with_the_evaluation(finished, tmp_path):
    folder, summary = finished["segmentation"]
    cfg = load_config(folder / CONFIGS["segmentation"].name)
    found = tasks.predict(cfg, folder / "last.pth", samples=4)
    right = [(p.predicted == p.truth)[p.truth != p.ignore_index] for p in found]
    assert 100 * np.concatenate(right).mean() == pytest.approx(summary["last"]["aAcc"], abs=0.01)
    for prediction in found:
        assert Path(prediction.source).suffix == ".jpg"
        assert 0 < (prediction.truth == 0).mean() < 1


def test_other_classes_in_the_annotations_become_the_models(train, tmp_path):
    classes = ("cat", "dog", "emu")
    dense_sets.write_coco(tmp_path / "data", np.random.default_rng(), classes=classes)
    cfg = load_config(CONFIGS["detection"], ["train_cfg.max_epochs=1"], tmp_path / "data")
    assert cfg.model.roi_head.bbox_head.num_classes == cfg.model.roi_head.mask_head.num_classes == 3
    tasks.train(cfg, tmp_path / "run")
    content = read_checkpoint(tmp_path / "run" / "last.pth")
    assert tuple(content["meta"]["dataset_meta"]["classes"]) == classes
    with pytest.raises(ValueError, match="3 classes"):
        cfg.model.roi_head.bbox_head.num_classes = cfg.model.roi_head.mask_head.num_classes = 2
        tasks.train(cfg, tmp_path / "wrong")


def test_weights_of_other_classes_are_fine_tuned_and_what_does_not_fit_is_named(finished, train, tmp_path, caplog):
    folder, _ = finished["segmentation"]
    changes = (f"load_from={folder / 'last.pth'}", "optim_wrapper.optimizer.lr=0.0", "train_cfg.max_iters=1")
    cfg = load_config(CONFIGS["segmentation"], changes, Path(folder.parent, "data0", "segmentation"))
    cfg.model.decode_head.out_channels = 5
    cfg.model.decode_head.num_classes = 5
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.metainfo = dict(classes=tuple("abcde"))
    tasks.train(cfg, tmp_path)
    before, after = weights(folder), weights(tmp_path)
    changed = {
        key for key in after if before[key].shape != after[key].shape or not torch.equal(before[key], after[key])
    }
    assert changed == {"decode_head.conv_seg.weight", "decode_head.conv_seg.bias"}
    log = next(tmp_path.rglob("*.log")).read_text()
    assert "does not fill 2 entries: decode_head.conv_seg.weight" in log


@pytest.mark.parametrize(
    "overrides",
    [
        ("optim_wrapper.type=AmpOptimWrapper", "optim_wrapper.dtype=bfloat16"),
        pytest.param(("optim_wrapper.accumulative_counts=2",), marks=pytest.mark.slow),
    ],
    ids=["bfloat16", "accumulation"],
)
def test_bfloat16_and_gradient_accumulation_train(overrides, train, finished, tmp_path):
    summary = train("segmentation", tmp_path, *overrides)
    assert summary["last"]["step"] == 12
    ours, plain = weights(tmp_path), weights(finished["segmentation"][0])
    assert all(value.isfinite().all() and value.dtype == plain[key].dtype for key, value in ours.items())
    assert any(not torch.equal(ours[key], plain[key]) for key in ours)


def test_float16_without_a_gpu_is_an_error_that_offers_bfloat16(train, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="optim_wrapper.dtype=bfloat16 works"):
        train("segmentation", tmp_path, "optim_wrapper.type=AmpOptimWrapper")


@pytest.mark.slow
def test_averaged_weights_are_kept_resumed_and_evaluated(data, tmp_path, monkeypatch):
    def settings():
        cfg = load_config(CONFIGS["segmentation"], (), data / "segmentation")
        cfg.custom_hooks = [*cfg.custom_hooks, dict(type="EMAHook", momentum=0.2)]
        return cfg

    whole = tasks.train(settings(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 9)
        with pytest.raises(Stopped):
            tasks.train(settings(), tmp_path / "halves")
    tasks.train(settings(), tmp_path / "halves", resume=True)
    contents = [read_checkpoint(tmp_path / name / "last.pth") for name in ("whole", "halves")]
    for part in ("state_dict", "ema_state_dict"):
        assert_same_weights(contents[0][part], contents[1][part])
    averaged, trained = contents[0]["state_dict"], contents[0]["ema_state_dict"]
    key = "decode_head.conv_seg.weight"
    assert not torch.equal(averaged[key], trained[f"module.{key}"])
    result = tasks.evaluate(settings(), tmp_path / "whole" / "last.pth", tmp_path / "m.json")
    assert {"step": 12, **result["metrics"]} == whole["last"]


def test_a_missing_logging_package_is_named(data, tmp_path):
    change = "visualizer.vis_backends.0.type=WandbVisBackend"
    arguments = ("train", CONFIGS["segmentation"], change, "--data", data / "segmentation", "--work-dir", tmp_path)
    result = call(*arguments)
    assert result.exit_code == 1
    assert "pip install wandb" in result.stderr
    assert "Traceback" not in result.output


def test_configs_of_mmdet_and_mmseg_get_our_hooks():
    cfg = load_config("mmdet::retinanet/retinanet_r50_fpn_1x_coco.py")
    assert (task_of(cfg), cfg.default_hooks.checkpoint.type) == ("detection", "AtomicCheckpointHook")
    assert {hook.type for hook in cfg.custom_hooks} >= {"EpochSeedHook", "MetricsHook", "ProgressHook"}
    cfg = load_config("mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py")
    assert task_of(cfg) == "segmentation"
    assert cfg.default_hooks.checkpoint.interval == 8000
    assert cfg.visualizer.vis_backends[0].type == "TensorboardVisBackend"
    with pytest.raises(ValueError, match="nearest: mmdet::retinanet"):
        load_config("mmdet::retinanet/retinanet_r50_fpn_9x_coco.py")
    with pytest.raises(ValueError, match="'mmother' must be"):
        load_config("mmother::x.py")


def start(task, data, work_dir, *more):
    arguments = ("train", CONFIGS[task], "--data", data / task, "--work-dir", work_dir, *more)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, "-m", "visionattn.cli", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def kill_after_a_checkpoint(process, file):
    """Kill a process a moment after it has written a checkpoint; False if it came to its end before."""
    before = file.stat().st_mtime_ns if file.exists() else None
    while process.poll() is None and (not file.exists() or file.stat().st_mtime_ns == before):
        time.sleep(0.01)
    try:
        process.wait(timeout=random.uniform(0, 0.6))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    assert process.returncode == 0, process.stderr.read()
    return False


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_killed_run_leaves_whole_checkpoints_and_resumes_to_the_same_weights(task, data, train, tmp_path):
    longer = {"detection": "train_cfg.max_epochs=6", "segmentation": "train_cfg.max_iters=60"}[task]
    train(task, tmp_path / "whole", longer)
    folder, kills = tmp_path / "killed", 0
    while kills < 3 and kill_after_a_checkpoint(
        start(task, data, folder, longer, "--resume", "auto"), folder / "last.pth"
    ):
        kills += 1
        for file in folder.glob("[!.]*.pth"):
            assert 0 < read_checkpoint(file)["meta"]["iter"] < {"detection": 24, "segmentation": 60}[task]
    assert kills >= 1, "nothing was killed"
    train(task, folder, longer, resume=True)
    assert_same_weights(weights(folder), weights(tmp_path / "whole"))
    assert not list(folder.glob(".*"))
