# SPDX-License-Identifier: Apache-2.0
"""Labels that fit the model, found out before the first step."""

from __future__ import annotations

from typing import Any

from mmengine.model import is_model_wrapper
from torch import nn

from visionattn.openmmlab.classifier import TimmClassifier


def check_labels(model: nn.Module, dataset: Any) -> None:
    """Raise ValueError if a data set has more classes than a classifier tells apart; other models are left alone."""
    classifier = model.module if is_model_wrapper(model) else model
    classes = getattr(dataset, "classes", None)
    if not isinstance(classifier, TimmClassifier) or classes is None:
        return
    outputs = int(classifier.model.num_classes)  # type: ignore[arg-type]
    if len(classes) > outputs:
        raise ValueError(
            f"the data have {len(classes)} classes ({', '.join(classes[:3])}, …), so labels up to {len(classes) - 1}, "
            f"but model.num_classes={outputs} allows 0 to {outputs - 1}; set model.num_classes={len(classes)}, or name "
            "the data by --data, which sets it"
        )
