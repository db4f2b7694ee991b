# SPDX-License-Identifier: Apache-2.0
"""The zoo: importing this registers every family with timm."""

from . import dinat_s, nat, nat_isotropic, swin  # noqa: F401  registration
from ._base import VisionModel
from ._checkpoint import KeyMap, convert, read_checkpoint
from ._isotropic import Isotropic
from ._pyramid import Pyramid
from ._registry import FAMILIES, Family, ModelInfo, Paper, Published, create_model, info, list_models, load_checkpoint

__all__ = [
    "FAMILIES",
    "Family",
    "Isotropic",
    "KeyMap",
    "ModelInfo",
    "Paper",
    "Published",
    "Pyramid",
    "VisionModel",
    "convert",
    "create_model",
    "info",
    "list_models",
    "load_checkpoint",
    "read_checkpoint",
]
