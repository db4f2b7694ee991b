# SPDX-License-Identifier: Apache-2.0
"""Train, evaluate and predict from a config: what the command line runs."""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from visionattn.openmmlab.config import find_config
from visionattn.openmmlab.hooks import CURVES_FILE, METRICS_FILE, ProgressHook
from visionattn.openmmlab.runner import AtomicRunner, load_strictly, read_checkpoint
from visionattn.viz import Prediction


def default_work_dir(name: str | os.PathLike[str]) -> Path:
    """`work_dirs/<config's name>`, below the current folder."""
    return Path("work_dirs", find_config(name).stem)


def train(
    cfg: Config,
    work_dir: str | os.PathLike[str],
    resume: bool = False,
    launcher: str = "none",
    accelerate: bool = False,
) -> dict[str, Any]:
    """Train as `cfg` says; checkpoints, metrics, curves and `summary.json` go to `work_dir`.

    Args:
        cfg: From `load_config`.
        work_dir: Folder of the run.
        resume: Go on from `last.pth` in `work_dir`, with the same result as a run that never stopped.
        launcher: "none" for one process, "pytorch" under torchrun, or another of mmengine's launchers.
        accelerate: Let our ops compute the attention of another library's model (`visionattn.accelerate`).

    Returns:
        What `summary.json` holds: metrics of the last and the best epoch, seconds, parameters, file paths, names of
        images that could not be read.

    Raises:
        FileNotFoundError: `resume` is set and there is no `last.pth`.
        ValueError: The config or the checkpoint to resume from does not fit.
        FloatingPointError: The loss is no number any more.
    """
    work_dir = Path(work_dir)
    cfg.resume, cfg.load_from = resume, None
    if resume:
        cfg.load_from = str(work_dir / "last.pth")
        read_checkpoint(cfg.load_from)
    runner = build_runner(cfg, work_dir, launcher, accelerate)
    start = time.monotonic()
    with _package_log(runner):
        try:
            runner.train()
        finally:
            for hook in runner.hooks:
                if isinstance(hook, ProgressHook):
                    hook.close()
    barrier()  # the main process has written the last checkpoint
    last = read_checkpoint(work_dir / "last.pth")["meta"]
    skipped = {name for loop in (runner.train_loop, runner.val_loop) if loop is not None for name in _bad(loop)}
    summary = {
        "config": cfg.filename,
        "seed": runner.seed,
        "parameters": sum(parameter.numel() for parameter in runner.model.parameters()),
        "seconds": round(time.monotonic() - start, 1),
        "last": {"epoch": last["epoch"], **last["metrics"]},
        "best": runner.message_hub.runtime_info.get("best"),
        "checkpoints": {name: str(work_dir / f"{name}.pth") for name in ("last", "best")},
        "metrics_file": str(work_dir / METRICS_FILE),
        "curves": str(work_dir / CURVES_FILE),
        "skipped_images": sorted(skipped),
    }
    _write_json(summary, work_dir / "summary.json")
    return summary


def evaluate(
    cfg: Config, checkpoint: str | os.PathLike[str], output: str | os.PathLike[str], accelerate: bool = False
) -> dict[str, Any]:
    """Metrics of a checkpoint on the test data of `cfg`, also written to the JSON file `output`.

    Args:
        cfg: From `load_config`.
        checkpoint: Written by `train`.
        output: File to write.
        accelerate: Let our ops compute the attention of another library's model (`visionattn.accelerate`).

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: The checkpoint cannot be read, does not fit the model, or knows other classes than the data.
    """
    content = read_checkpoint(checkpoint)
    output = Path(output)
    cfg.resume, cfg.load_from = False, str(checkpoint)
    runner = build_runner(cfg, output.parent / "logs", accelerate=accelerate)
    _check_classes(content, runner.test_dataloader.dataset.classes)
    with _package_log(runner):
        metrics = runner.test()
    result = {
        "checkpoint": str(checkpoint),
        "epoch": content["meta"]["epoch"],
        "images": len(runner.test_dataloader.dataset) - len(_bad(runner.test_loop)),
        "skipped_images": _bad(runner.test_loop),
        "metrics": metrics,
    }
    _write_json(result, output)
    return result


def predict(
    cfg: Config, checkpoint: str | os.PathLike[str], images: Sequence[str | os.PathLike[str]] = (), samples: int = 24
) -> list[Prediction]:
    """Predictions for image files, or for samples of the test data where no file is given.

    Args:
        cfg: From `load_config`.
        checkpoint: Written by `train`.
        images: Image files.
        samples: Number of test images, spread evenly, where `images` is empty.

    Raises:
        FileNotFoundError: The checkpoint or an image does not exist.
        ValueError: The checkpoint or an image cannot be read.
    """
    content = read_checkpoint(checkpoint)
    model = load_classifier(cfg, checkpoint)
    if images:
        pipeline = build_pipeline(cfg.test_dataloader.dataset.pipeline)
        classes = content["meta"]["dataset_meta"]["classes"]
        arrays = [(read_image(path), None, str(path)) for path in images]
    else:
        dataset: ClassificationDataset = DATASETS.build(cfg.test_dataloader.dataset)
        _check_classes(content, dataset.classes)
        pipeline, classes = dataset.pipeline, dataset.classes
        chosen = torch.linspace(0, len(dataset) - 1, min(max(samples, 1), len(dataset))).round().int().tolist()
        arrays = [(dataset.image(i), classes[dataset.labels[i]], dataset.source(i)) for i in chosen]
    predictions = []
    for image, truth, source in arrays:
        with torch.inference_mode():
            scores = model(pipeline(image=image)["image"][None]).softmax(-1)[0]
        best = int(scores.argmax())
        predictions.append(Prediction(image, classes[best], float(scores[best]), truth, source))
    return predictions


def load_classifier(cfg: Config, checkpoint: str | os.PathLike[str] | None = None) -> torch.nn.Module:
    """The config's timm model for inference, with a checkpoint's weights and number of classes where one is given."""
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
    cfg.work_dir, cfg.launcher = str(work_dir), launcher
    if launcher != "none" and not torch.cuda.is_available():
        raise ValueError(f"launcher={launcher!r} runs one process a GPU, and there is none here; use 'none'")
    cfg.experiment_name = f"{Path(cfg.filename or 'run').stem}_{uuid.uuid4().hex[:8]}"
    runner = AtomicRunner.from_cfg(cfg)
    if accelerate:
        runner.logger.info(str(accelerate_model(runner.model)))
    return runner


@contextmanager
def _package_log(runner: AtomicRunner) -> Iterator[None]:
    """Lets what the package reports, such as images that cannot be read, go where the runner's log goes."""
    ours = logging.getLogger("visionattn")
    before = ours.handlers[:], ours.propagate
    ours.handlers[:], ours.propagate = runner.logger.handlers, False
    try:
        yield
    finally:
        ours.handlers[:], ours.propagate = before


def _bad(loop: Any) -> list[str]:
    bad_files = getattr(loop.dataloader.dataset, "bad_files", list)
    return bad_files()


def _check_classes(checkpoint: dict[str, Any], classes: Sequence[str]) -> None:
    """Raise ValueError unless the checkpoint was trained on the same classes, in the same order."""
    known = list(checkpoint["meta"].get("dataset_meta", {}).get("classes", classes))
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
