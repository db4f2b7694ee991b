# SPDX-License-Identifier: Apache-2.0
"""Train, evaluate and predict from a config: what the command line runs."""

from __future__ import annotations

import io
import json
import logging
import os
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import barrier, is_main_process
from mmengine.registry import DATASETS, MODELS

from visionattn._files import replacing
from visionattn.acceleration import accelerate as accelerate_model
from visionattn.data import ClassificationDataset, build_pipeline, read_image
from visionattn.openmmlab import dense, distributed
from visionattn.openmmlab.config import find_config, task_of
from visionattn.openmmlab.hooks import CURVES_FILE, METRICS_FILE, ProgressHook, plain
from visionattn.openmmlab.runner import AtomicRunner, load_strictly, read_checkpoint
from visionattn.viz import DensePrediction, Prediction


def default_work_dir(name: str | os.PathLike[str]) -> Path:
    """`work_dirs/<config's name>`, below the current folder."""
    return Path("work_dirs", find_config(name).stem)


def train(
    cfg: Config,
    work_dir: str | os.PathLike[str],
    resume: bool | str = False,
    launcher: str = "none",
    accelerate: bool = False,
) -> dict[str, Any]:
    """Train as `cfg` says; checkpoints, metrics, curves and `summary.json` go to `work_dir`.

    Args:
        cfg: From `load_config`.
        work_dir: Folder of the run.
        resume: Go on from `last.pth` in `work_dir`, with the same result as a run that never stopped; "auto" begins
            anew where there is none.
        launcher: "none" for one process, "pytorch" under torchrun, or "slurm" under srun.
        accelerate: Let our ops compute the attention of another library's model (`visionattn.accelerate`).

    Returns:
        What `summary.json` holds: metrics of the last and the best epoch (or step, in a run by steps), seconds,
        parameters, file paths, names of images that could not be read.

    Raises:
        FileNotFoundError: `resume` is True and there is no `last.pth`, or data are not there.
        ValueError: The config, the launcher or the checkpoint to resume from does not fit.
        FloatingPointError: The loss is no number any more; the message says at which step and for which images.
    """
    if resume not in (True, False, "auto"):
        raise ValueError(f"resume={resume!r} must be True, False or 'auto'")
    work_dir, task = Path(work_dir), task_of(cfg)
    resume = "auto" if distributed.restarted() else resume
    resume = (work_dir / "last.pth").is_file() if resume == "auto" else resume
    cfg.resume = resume
    if resume:
        cfg.load_from = str(work_dir / "last.pth")
    if resume or cfg.get("load_from"):
        read_checkpoint(cfg.load_from)
    if task != "classification":
        dense.check_before_work(cfg, task, ("train_dataloader", "val_dataloader"))
    runner = build_runner(cfg, work_dir, launcher, accelerate)
    _remove_unfinished(work_dir)
    start = time.monotonic()
    with _package_log(runner):
        try:
            with distributed.naming_lost_processes():
                runner.train()
        finally:
            for hook in runner.hooks:
                if isinstance(hook, ProgressHook):
                    hook.close()
    barrier()  # the main process has written the last checkpoint
    last = read_checkpoint(work_dir / "last.pth")["meta"]
    place = {"step": last["iter"]} if last["by_steps"] else {"epoch": last["epoch"]}
    skipped = {name for loop in (runner.train_loop, runner.val_loop) if loop is not None for name in _bad(loop)}
    summary = {
        "config": cfg.filename,
        "seed": runner.seed,
        "parameters": sum(parameter.numel() for parameter in runner.model.parameters()),
        "seconds": round(time.monotonic() - start, 1),
        "last": {**place, **last["metrics"]},
        "best": runner.message_hub.runtime_info.get("best"),
        "checkpoints": {
            name: str(work_dir / f"{name}.pth") for name in ("last", "best") if (work_dir / f"{name}.pth").is_file()
        },
        "metrics_file": str(work_dir / METRICS_FILE),
        "curves": str(work_dir / CURVES_FILE),
        "skipped_images": sorted(skipped),
    }
    _write_json(summary, work_dir / "summary.json")
    return summary


def scale_learning_rate(cfg: Config) -> None:
    """Have the learning rate of `cfg` scaled by the images of a step, over those that it holds for.

    Raises:
        ValueError: The config does not say how many it holds for.
    """
    if not (cfg.get("auto_scale_lr") or {}).get("base_batch_size"):
        raise ValueError(
            f"--scale-lr: config {cfg.filename} has no auto_scale_lr.base_batch_size, the images of a step that its "
            "learning rate holds for"
        )
    cfg.auto_scale_lr = {**cfg.auto_scale_lr, "enable": True}


def evaluate(
    cfg: Config, checkpoint: str | os.PathLike[str], output: str | os.PathLike[str], accelerate: bool = False
) -> dict[str, Any]:
    """Metrics of a checkpoint on the test data of `cfg`, also written to the JSON file `output`.

    Detection has COCO's twelve figures for boxes and for masks, 0 to 1, -1 where no object is of a size; segmentation
    has `aAcc`, `mIoU` and `mAcc` in percent, and `classes` with those of each class.

    Args:
        cfg: From `load_config`.
        checkpoint: Written by `train`, or by mmengine.
        output: File to write.
        accelerate: Let our ops compute the attention of another library's model (`visionattn.accelerate`).

    Raises:
        FileNotFoundError: There is no such checkpoint, or data are not there.
        ValueError: The checkpoint cannot be read, does not fit the model, or knows other classes than the data.
    """
    content, task = read_checkpoint(checkpoint), task_of(cfg)
    output = Path(output)
    if task != "classification":
        dense.check_before_work(cfg, task, ("test_dataloader",))
        dense.measure_all(cfg)
    cfg.resume, cfg.load_from = False, str(checkpoint)
    runner = build_runner(cfg, output.parent / "logs", accelerate=accelerate)
    with _package_log(runner):
        _check_classes(content, runner.test_dataloader.dataset.metainfo["classes"])
        metrics = runner.test()
    classes: dict[str, Any] = {}
    if task != "classification":
        metrics, classes = dense.named_figures(metrics, cfg)
    meta = content.get("meta", {})
    result = {
        "checkpoint": str(checkpoint),
        **({"step": meta["iter"]} if meta.get("by_steps") else {"epoch": meta.get("epoch")}),
        "images": len(runner.test_dataloader.dataset) - len(_bad(runner.test_loop)),
        "skipped_images": _bad(runner.test_loop),
        "metrics": {name: plain(value) for name, value in metrics.items()},
    }
    if classes:
        result["classes"] = {label: {k: plain(v) for k, v in values.items()} for label, values in classes.items()}
    _write_json(result, output)
    return result


def predict(
    cfg: Config,
    checkpoint: str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]] = (),
    samples: int | None = None,
    score: float = 0.3,
) -> list[Prediction] | list[DensePrediction]:
    """Predictions for image files, or for samples of the test data where no file is given.

    Args:
        cfg: From `load_config`.
        checkpoint: Written by `train`.
        images: Image files.
        samples: Number of test images, spread evenly, where `images` is empty; None for 24 labelled images, or 6 with
            their objects or class maps.
        score: Least confidence of a detector's objects.

    Raises:
        FileNotFoundError: The checkpoint or an image does not exist.
        ValueError: The checkpoint or an image cannot be read.
    """
    if task_of(cfg) != "classification":
        return dense.predict(cfg, checkpoint, images, dense.SAMPLES if samples is None else samples, score)
    return _predict_classes(cfg, checkpoint, images, 24 if samples is None else samples)


def _predict_classes(
    cfg: Config, checkpoint: str | os.PathLike[str], images: Sequence[str | os.PathLike[str]], samples: int
) -> list[Prediction]:
    content = read_checkpoint(checkpoint)
    model: Any = load_classifier(cfg, checkpoint)
    arrays: list[tuple[np.ndarray, str | None, str]]
    if images:
        pipeline = build_pipeline(cfg.test_dataloader.dataset.pipeline)
        classes = content["meta"]["dataset_meta"]["classes"]
        arrays = [(read_image(path), None, str(path)) for path in images]
    else:
        dataset: ClassificationDataset = DATASETS.build(cfg.test_dataloader.dataset)
        _check_classes(content, dataset.classes)
        pipeline, classes = dataset.pipeline, dataset.classes
        chosen = torch.linspace(0, len(dataset) - 1, min(max(samples, 1), len(dataset))).round().int().tolist()
        arrays = [(dataset.image(i), classes[dataset.label(i)], dataset.source(i)) for i in chosen]
    predictions = []
    for image, truth, source in arrays:
        with torch.inference_mode():
            scores = model(pipeline(image=image)["image"][None]).softmax(-1)[0]
        best = int(scores.argmax())
        predictions.append(Prediction(image, classes[best], float(scores[best]), truth, source))
    return predictions


def load_classifier(cfg: Config, checkpoint: str | os.PathLike[str] | None = None) -> torch.nn.Module:
    """The config's timm model for inference, with a checkpoint's weights and number of classes where one is given.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: The config is of another task, or the checkpoint cannot be read or does not fit.
    """
    if (task := task_of(cfg)) != "classification":
        raise ValueError(f"config {cfg.filename} is for {task}; its backbone can be taken by its model name")
    if checkpoint is None:
        return MODELS.build(cfg.model).model.eval()
    content = read_checkpoint(checkpoint)
    classes = content.get("meta", {}).get("dataset_meta", {}).get("classes")
    model = MODELS.build(cfg.model if classes is None else {**cfg.model, "num_classes": len(classes)})
    load_strictly(model, content["state_dict"], str(checkpoint))
    return model.model.eval()


def input_size(cfg: Config) -> tuple[int, int, int]:
    """`(channels, height, width)` of what the config's test pipeline makes of a photo."""
    photo = np.random.default_rng().integers(0, 256, (480, 640, 3), dtype=np.uint8)
    channels, height, width = build_pipeline(cfg.test_dataloader.dataset.pipeline)(image=photo)["image"].shape
    return channels, height, width


def build_runner(cfg: Config, work_dir: Path, launcher: str = "none", accelerate: bool = False) -> AtomicRunner:
    """Runner of a config, with a name of its own, as mmengine shares logs between runs of one name."""
    cfg.work_dir = str(work_dir)
    distributed.join(cfg, launcher)
    _use_bfloat16_anywhere(cfg)
    cfg.experiment_name = f"{Path(cfg.filename or 'run').stem}_{uuid.uuid4().hex[:8]}"
    with warnings.catch_warnings():
        # Of their own deprecated names and defaults, which whoever trains cannot change.
        warnings.filterwarnings("ignore", module=r"mm(det|seg|cv|engine)\.")
        runner = AtomicRunner.from_cfg(cfg)
    if accelerate:
        runner.logger.info(str(accelerate_model(runner.model)))
    return runner


def _remove_unfinished(work_dir: Path) -> None:
    """Take away checkpoints that a process which was killed had begun to write."""
    if is_main_process():
        for name in ("last", "best"):
            for file in work_dir.glob(f".{name}.*.tmp.pth"):
                file.unlink(missing_ok=True)


def _use_bfloat16_anywhere(cfg: Config) -> None:
    """Let bfloat16 be trained without a GPU too, which mmengine's wrapper refuses."""
    wrapper = cfg.get("optim_wrapper") or {}
    if wrapper.get("type") != "AmpOptimWrapper" or torch.cuda.is_available():
        return
    if wrapper.get("dtype") != "bfloat16":
        raise ValueError(
            f"optim_wrapper.type='AmpOptimWrapper' with dtype={wrapper.get('dtype')!r} needs a GPU; without one, "
            "optim_wrapper.dtype=bfloat16 works"
        )
    cfg.optim_wrapper["type"] = "AutocastOptimWrapper"
    cfg.optim_wrapper.pop("loss_scale", None)


class _Lines(io.TextIOBase):
    """Text file whose lines go to a logger."""

    def __init__(self, logger: logging.Logger) -> None:
        self.logger = logger

    def write(self, text: str) -> int:
        for line in filter(str.strip, text.splitlines()):
            self.logger.info(line)
        return len(text)


@contextmanager
def _package_log(runner: AtomicRunner) -> Iterator[None]:
    """Lets what the package reports, and what pycocotools prints, go where the runner's log goes."""
    ours = logging.getLogger("visionattn")
    before = ours.handlers[:], ours.propagate
    ours.handlers[:], ours.propagate = runner.logger.handlers, False
    try:
        with redirect_stdout(_Lines(runner.logger)), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"mm(det|seg|cv|engine)\.")
            yield
    finally:
        ours.handlers[:], ours.propagate = before


def _bad(loop: Any) -> list[str]:
    bad_files = getattr(loop.dataloader.dataset, "bad_files", list)
    return bad_files()


def _check_classes(checkpoint: dict[str, Any], classes: Sequence[str]) -> None:
    """Raise ValueError unless the checkpoint was trained on the same classes, in the same order."""
    known = list((checkpoint.get("meta", {}).get("dataset_meta") or {}).get("classes") or classes)
    if known != list(classes):
        differing = sorted(set(known) ^ set(classes))[:6]
        raise ValueError(
            f"the checkpoint knows {len(known)} classes and the data has {len(classes)}; "
            + (f"not in both: {', '.join(differing)}" if differing else "their order differs")
        )


def _write_json(value: dict[str, Any], path: Path) -> None:
    if is_main_process():
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(value, indent=2) + "\n")
