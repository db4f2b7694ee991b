# SPDX-License-Identifier: Apache-2.0
"""The zoo: importing this registers every family with timm."""

import importlib
import pkgutil

from ._base import VisionModel
from ._checkpoint import KeyMap, convert, keep_tensors, read_checkpoint
from ._isotropic import Isotropic
from ._pyramid import Pyramid
from ._registry import (
    FAMILIES,
    SERVED,
    Family,
    ModelInfo,
    Paper,
    Published,
    convert_checkpoint,
    create_model,
    dense_args,
    family_of,
    info,
    list_models,
    load_checkpoint,
)

# Every file here without an underscore is a family or several.
for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "FAMILIES",
    "SERVED",
    "Family",
    "Isotropic",
    "KeyMap",
    "ModelInfo",
    "Paper",
    "Published",
    "Pyramid",
    "VisionModel",
    "convert",
    "convert_checkpoint",
    "create_model",
    "dense_args",
    "family_of",
    "info",
    "keep_tensors",
    "list_models",
    "load_checkpoint",
    "read_checkpoint",
]
