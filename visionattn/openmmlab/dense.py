# SPDX-License-Identifier: Apache-2.0
"""What detection and segmentation have beside classification: their data, figures and predictions."""

from __future__ import annotations

import copy
import importlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any, cast

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, DefaultScope
from torch import nn

from visionattn.data import read_image
from visionattn.openmmlab import structure
from visionattn.openmmlab.config import SCOPES, task_of
from visionattn.openmmlab.loading import GuardedPipeline
from visionattn.openmmlab.runner import load_strictly, read_checkpoint
from visionattn.viz import DensePrediction, Objects

SAMPLES = 6
# COCO's twelve figures: mmdet's name of each place in pycocotools' list, and what stands there with COCO's limits of 1,
# 10 and 100 detections, for which mmdet has no names.
COCO_LIMITS = (1, 10, 100)
COCO_FIGURES = {
    **{name: name for name in ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")},
    **{"AR@100": "AR@1", "AR@300": "AR@10", "AR@1000": "AR@100"},
    **{f"AR_{size}@1000": f"AR_{size}@100" for size in "sml"},
}


def check_before_work(cfg: Config, task: str, keys: Sequence[str]) -> None:
    """Raise an error if the task's package, the data, or a head for their classes is missing.

    Args:
        cfg: From `load_config`.
        task: "detection" or "segmentation".
        keys: Loaders that will be used.

    Raises:
        FileNotFoundError: Data are not there.
        ModuleNotFoundError: mmdet or mmsegmentation is not installed.
        ValueError: The model's heads have another number of classes than the data.
    """
    importlib.import_module(SCOPES[task])
    structure.check(cfg, task, tuple(keys))
    structure.check_classes(cfg, tuple(keys))


def measure_all(cfg: Config) -> None:
    """Let the test evaluators of `cfg` report all of COCO's figures, and the IoU of each class."""
    for evaluator in _evaluators(cfg):
        kind = str(evaluator.get("type", "")).rpartition(".")[2]
        if kind == "CocoMetric" and not evaluator.get("metric_items") and not evaluator.get("proposal_nums"):
            evaluator.metric_items = list(COCO_FIGURES)
            evaluator.proposal_nums = COCO_LIMITS
        elif kind == "IoUMetric":
            importlib.import_module("visionattn.openmmlab.iou")
            evaluator.type = "ClassIoUMetric"


def named_figures(metrics: Mapping[str, Any], cfg: Config) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Metrics under COCO's names, and those of each class apart.

    A detector that finds nothing at all gets no figures from mmdet; its precision and recall are 0.
    """
    overall: dict[str, Any] = {}
    classes: dict[str, dict[str, Any]] = {}
    measured_all = any(part.get("proposal_nums") == COCO_LIMITS for part in _evaluators(cfg))
    for name, value in metrics.items():
        figure, slash, label = name.partition("/")
        if slash and figure in ("IoU", "Acc"):
            classes.setdefault(label, {})[figure] = value
            continue
        kind, underscore, figure = name.partition("_")
        overall[f"{kind}_{COCO_FIGURES.get(figure, figure)}" if measured_all and underscore else name] = value
    for part in _evaluators(cfg):
        if str(part.get("type", "")).endswith("CocoMetric") and not part.get("format_only"):
            kinds = part.get("metric", "bbox")
            for kind in [kinds] if isinstance(kinds, str) else kinds:
                if f"coco/{kind}_mAP" not in overall and kind in ("bbox", "segm"):
                    overall.update({f"coco/{kind}_{name}": 0.0 for name in ("mAP", "mAP_50", "mAP_75")})
    return overall, classes


def _evaluators(cfg: Config) -> list[Any]:
    return list(cfg.test_evaluator) if isinstance(cfg.test_evaluator, (list, tuple)) else [cfg.test_evaluator]


def load_model(cfg: Config, checkpoint: str | os.PathLike[str] | None = None) -> nn.Module:
    """Detector or segmentor of a config in evaluation mode, with a checkpoint's weights where one is given.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: The checkpoint cannot be read or does not fit.
    """
    content = None if checkpoint is None else read_checkpoint(checkpoint)
    with DefaultScope.overwrite_default_scope(SCOPES[task_of(cfg)]):
        settings = copy.deepcopy(cfg.model)
        settings.pop("pretrained", None)
        model = MODELS.build(settings)
    model = revert_sync_batchnorm(model)  # which needs several processes
    if content is not None:
        load_strictly(model, content["state_dict"], str(checkpoint))
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def predict(
    cfg: Config,
    checkpoint: str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]] = (),
    samples: int = SAMPLES,
    score: float = 0.3,
) -> list[DensePrediction]:
    """Objects or class maps for image files, or for samples of the test data, beside their ground truth.

    Args:
        cfg: From `load_config`.
        checkpoint: Weights of the config's model.
        images: Image files.
        samples: Number of test images, spread evenly, where `images` is empty.
        score: Least confidence of the objects that are kept, 0 to 1.

    Raises:
        FileNotFoundError: The checkpoint or an image does not exist.
        ValueError: The checkpoint or an image cannot be read, or `score` is not between 0 and 1.
    """
    if not 0 <= score <= 1:
        raise ValueError(f"score={score} must be between 0 and 1")
    task = task_of(cfg)
    importlib.import_module(SCOPES[task])
    arrays = [read_image(path) for path in images]  # before any work
    model = load_model(cfg, checkpoint)
    with DefaultScope.overwrite_default_scope(SCOPES[task]):
        if images:
            meta = read_checkpoint(checkpoint).get("meta", {}).get("dataset_meta") or {}
            classes = meta.get("classes") or structure.known_classes(cfg)
            sources: Any = zip(_file_samples(cfg, images), arrays, [None] * len(images), map(str, images), strict=True)
        else:
            structure.check(cfg, task, ("test_dataloader",))
            with redirect_stdout(io.StringIO()):  # pycocotools reports each step
                dataset = DATASETS.build(cfg.test_dataloader.dataset)
            meta, classes = dataset.metainfo, dataset.metainfo["classes"]
            sources = _test_samples(dataset, samples)
        if not classes:
            raise ValueError(f"checkpoint {checkpoint} does not name its classes, nor does the config")
        ignore = getattr(getattr(model, "decode_head", None), "ignore_index", 255)
        return [
            DensePrediction(image, _found(model, sample, score), classes, truth, source, meta.get("palette"), ignore)
            for sample, image, truth, source in sources
        ]


def _file_samples(cfg: Config, images: Sequence[str | os.PathLike[str]]) -> Iterator[dict[str, Any]]:
    """What the test pipeline makes of files that have no annotations."""
    dataset = next(structure.leaves(cfg.test_dataloader.dataset))
    steps = [step for step in dataset.pipeline if not str(step["type"]).endswith("LoadAnnotations")]
    pipeline = GuardedPipeline(Compose([TRANSFORMS.build(step) for step in steps]))
    for number, path in enumerate(images):
        yield pipeline({"img_path": str(path), "img_id": number})


def _test_samples(dataset: Any, count: int) -> Iterator[tuple[Any, np.ndarray, Any, str]]:
    chosen = torch.linspace(0, len(dataset) - 1, min(max(count, 1), len(dataset))).round().int().tolist()
    for index in chosen:
        sample, facts = dataset[index], dataset.get_data_info(index)
        image = read_image(facts["img_path"])
        yield sample, image, _truth(sample, facts, image.shape[:2]), facts["img_path"]


def _truth(sample: Any, facts: dict[str, Any], size: tuple[int, int]) -> Objects | np.ndarray | None:
    """Ground truth in the pixels of the image file."""
    gt_map = getattr(sample["data_samples"], "gt_sem_seg", None)
    if gt_map is not None:
        labels = gt_map.data.squeeze(0).numpy()
        return labels if labels.shape == size else None
    instances = [instance for instance in facts.get("instances", ()) if not instance["ignore_flag"]]
    boxes = np.array([instance["bbox"] for instance in instances], dtype=np.float32).reshape(-1, 4)
    labels = np.array([instance["bbox_label"] for instance in instances], dtype=np.int64)
    masks = None
    if instances and all("mask" in instance for instance in instances):
        masks = np.stack([_bitmap(instance["mask"], size) for instance in instances])
    return Objects(boxes, labels, None, masks)


def _bitmap(mask: Any, size: tuple[int, int]) -> np.ndarray:
    """Pixels of COCO's polygons or run lengths, `(H, W)` bool."""
    from pycocotools import mask as coco

    runs = mask
    if isinstance(mask, list):
        runs = coco.merge(coco.frPyObjects(mask, *size))
    elif isinstance(mask["counts"], list):
        runs = coco.frPyObjects(mask, *size)
    return coco.decode(runs).astype(bool)


def _found(model: nn.Module, sample: Any, score: float) -> Objects | np.ndarray:
    """What the model says about one sample, in the pixels of the image file."""
    with torch.inference_mode():
        (result,) = cast(Any, model).test_step(pseudo_collate([sample]))
    if hasattr(result, "pred_sem_seg"):
        return result.pred_sem_seg.data.squeeze(0).cpu().numpy()
    found = result.pred_instances.cpu()
    masks = found.masks.numpy().astype(bool) if "masks" in found else None
    return Objects(found.bboxes.numpy(), found.labels.numpy(), found.scores.numpy(), masks).above(score)
