# SPDX-License-Identifier: Apache-2.0
"""What the ONNX file of a model of timm says about itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from torch import nn

from visionattn.export.metadata import GraphInfo, Preparation


def describe_model(model: nn.Module, name: str, size: Sequence[int] | None = None) -> GraphInfo:
    """Facts of a classifier of timm: its own normalisation and crop, and ImageNet's names where it has its classes.

    Args:
        model: From `timm.create_model`.
        name: Its name.
        size: `(channels, height, width)`; None for the model's own.
    """
    settings: dict[str, Any] = resolve_model_data_config(model)
    channels, height, width = (int(n) for n in (settings["input_size"] if size is None else size))
    crop_pct = float(settings["crop_pct"])
    squash = settings["crop_mode"] == "squash" and crop_pct == 1.0
    how = str(settings["interpolation"])
    subset = infer_imagenet_subset(model)
    classes = tuple(ImageNetInfo(subset).label_descriptions()) if subset else ()
    return GraphInfo(
        task="classification",
        model=name,
        input_size=(channels, height, width),
        mean=tuple(255.0 * float(v) for v in settings["mean"]),
        std=tuple(255.0 * float(v) for v in settings["std"]),
        preparation=Preparation(
            "stretch" if squash else "crop", how, antialias=True, crop_pct=1.0 if squash else min(crop_pct, 1.0)
        ),
        classes=classes if len(classes) == model.num_classes else (),
    )
