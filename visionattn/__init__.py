# SPDX-License-Identifier: Apache-2.0
"""Attention backbones of the vision literature behind `timm.create_model`; importing this registers them."""

from .acceleration import accelerate
from .models import ModelInfo, create_model, info, list_models, load_checkpoint

__version__ = "0.1.0"

__all__ = ["ModelInfo", "__version__", "accelerate", "create_model", "info", "list_models", "load_checkpoint"]
