# SPDX-License-Identifier: Apache-2.0
"""The zoo: importing this registers every family with timm."""

from . import (  # noqa: F401  registration
    biformer,
    cbam,
    cswin,
    dinat_s,
    gated,
    mambaout,
    nat,
    nat_isotropic,
    psa,
    pvtv2,
    swin,
    swinv2,
    triplet,
    twins,
)
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
