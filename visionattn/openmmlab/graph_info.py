# SPDX-License-Identifier: Apache-2.0
"""What the ONNX file of a config's model says about itself: preprocessing, classes, thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config
from torch import nn

from visionattn.export import GraphInfo, Preparation
from visionattn.openmmlab import structure
from visionattn.openmmlab.config import task_of
from visionattn.openmmlab.runner import read_checkpoint

INTERPOLATIONS = {0: "nearest", 1: "bilinear", 2: "bicubic", 4: "lanczos"}  # OpenCV's numbers
INERT = ("ToTensorV2", "ToFloat", "Normalize")


def describe(cfg: Config, model: nn.Module, checkpoint: Any = None, size: Sequence[int] | None = None) -> GraphInfo:
    """What a detector's or segmentor's ONNX file says about itself.

    Args:
        cfg: From `load_config`.
        model: Built from it.
        checkpoint: Its weights' file, which names the classes.
        size: Height and width; None for the config's.
    """
    task = task_of(cfg)
    before: Any = model.data_preprocessor
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3
    if getattr(before, "_enable_normalize", False):
        mean, std = (tuple(float(v) for v in part.flatten().tolist()) for part in (before.mean, before.std))
    reversed_order = bool(getattr(before, "_channel_conversion", getattr(before, "channel_conversion", False)))
    classes, palette = _classes(cfg, checkpoint)
    height, width = input_size(cfg) if size is None else (int(size[0]), int(size[1]))
    test_cfg: Any = getattr(model, "test_cfg", None) or {}
    window: Any = None
    if task == "segmentation" and test_cfg.get("mode") == "slide":
        window = (*map(int, test_cfg["crop_size"]), *map(int, test_cfg["stride"]))
    threshold = getattr(getattr(model, "decode_head", None), "threshold", None)
    roi_head: Any = getattr(model, "roi_head", None)
    if roi_head is not None:
        threshold = roi_head.test_cfg.get("mask_thr_binary", 0.5)
    return GraphInfo(
        task=task,
        model=str(cfg.filename and config_name(cfg.filename)),
        input_size=(3, height, width),
        mean=mean,
        std=std,
        preparation=preparation(cfg),
        classes=classes,
        channel_order="RGB" if reversed_order else "BGR",  # mmcv reads images as BGR
        palette=palette,
        threshold=0.5 if threshold is None else float(threshold),
        window=window,
        ignore_index=int(getattr(getattr(model, "decode_head", None), "ignore_index", 255)),
    )


def config_name(filename: str) -> str:
    """Last folder and name of a config's file."""
    parts = str(filename).removesuffix(".py").split("/")
    return "/".join(parts[-2:])


def _classes(cfg: Config, checkpoint: Any) -> tuple[tuple[str, ...], Any]:
    meta = {} if checkpoint is None else read_checkpoint(checkpoint).get("meta", {}).get("dataset_meta") or {}
    classes = tuple(meta.get("classes") or structure.known_classes(cfg) or ())
    palette = meta.get("palette")
    return classes, None if palette is None else tuple(tuple(int(v) for v in color) for color in palette)


def _resize_step(cfg: Config) -> Mapping[str, Any] | None:
    dataset = next(structure.leaves(cfg.test_dataloader.dataset))
    steps = [step for step in dataset.pipeline if str(step["type"]).rpartition(".")[2] == "Resize"]
    return steps[0] if len(steps) == 1 and steps[0].get("scale") else None


def preparation(cfg: Config) -> Preparation | None:
    """How a photo gets its size; None where the test pipeline's resizing is of another kind than a single Resize."""
    step = _resize_step(cfg)
    if step is None:
        return None
    width, height = (int(side) for side in step["scale"])
    if step.get("keep_ratio", False):
        return Preparation("fit", scale=(max(width, height), min(width, height)))
    return Preparation("stretch")


def input_size(cfg: Config) -> tuple[int, int]:
    """Height and width of the exported example: of the windows, or what the test pipeline makes of a wide photo."""
    test_cfg = cfg.model.get("test_cfg") or {}
    if task_of(cfg) == "segmentation":
        if test_cfg.get("mode") == "slide":
            return int(test_cfg["crop_size"][0]), int(test_cfg["crop_size"][1])
        given = (cfg.model.get("data_preprocessor") or {}).get("size")
        if given:
            return int(given[0]), int(given[1])
    step = _resize_step(cfg)
    width, height = (int(side) for side in step["scale"]) if step is not None else (1333, 800)
    height, width = (height, width) if not (step or {}).get("keep_ratio", True) else sorted((height, width))
    multiple = int((cfg.model.get("data_preprocessor") or {}).get("pad_size_divisor", 1) or 1)
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


def describe_classifier(cfg: Config, size: Sequence[int], checkpoint: Any = None) -> GraphInfo:
    """What the ONNX file of a classification config says about itself.

    Args:
        cfg: From `load_config`.
        size: `(channels, height, width)`.
        checkpoint: Its weights' file, which names the classes.
    """
    described = cfg.test_dataloader.dataset.pipeline
    steps = [described] if isinstance(described, Mapping) else list(described)
    normal = next((step for step in steps if step["type"] in ("Normalize", "ImageNetEval")), {})
    top = float(normal.get("max_pixel_value", 255.0))
    mean = tuple(top * float(v) for v in normal.get("mean", (0.485, 0.456, 0.406) if normal else (0.0,) * 3))
    std = tuple(top * float(v) for v in normal.get("std", (0.229, 0.224, 0.225) if normal else (1.0,) * 3))
    meta = {} if checkpoint is None else read_checkpoint(checkpoint).get("meta", {}).get("dataset_meta") or {}
    channels, height, width = (int(n) for n in size)
    return GraphInfo(
        task="classification",
        model=config_name(str(cfg.filename)),
        input_size=(channels, height, width),
        mean=mean,
        std=std,
        preparation=classifier_preparation(steps),
        classes=tuple(str(label) for label in meta.get("classes") or ()),
    )


def classifier_preparation(steps: Sequence[Mapping[str, Any]]) -> Preparation | None:
    """How a test pipeline's steps make a photo's size; None where they are none that a file can say."""
    if [step["type"] for step in steps] == ["ImageNetEval"]:
        step, share = steps[0], float(steps[0].get("crop_pct", 0.875))
        squash = step.get("crop_mode") == "squash" and share == 1.0
        if share > 1 or (step.get("crop_mode", "center") != "center" and not squash):
            return None
        how = step.get("interpolation", "bicubic")
        return Preparation("stretch" if squash else "crop", how, antialias=True, crop_pct=share)
    shaping = [step for step in steps if step["type"] not in INERT]
    kinds = [step["type"] for step in shaping]
    how = INTERPOLATIONS.get(int(shaping[0].get("interpolation", 1)), "") if shaping else ""
    if not how:
        return None
    if kinds == ["Resize"]:
        return Preparation("stretch", how)
    if kinds == ["SmallestMaxSize", "CenterCrop"] and shaping[1]["height"] == shaping[1]["width"]:
        return Preparation("crop", how, crop_pct=min(shaping[1]["height"] / shaping[0]["max_size"], 1.0))
    return None
