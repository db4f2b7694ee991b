# SPDX-License-Identifier: Apache-2.0
"""Attention backbones of the vision literature behind `timm.create_model`; importing this registers them."""

import importlib
import sys
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .acceleration import accelerate
    from .explanation import explain
    from .models import ModelInfo, create_model, info, list_models, load_checkpoint

__version__ = "0.1.0"

__all__ = [
    "ModelInfo",
    "__version__",
    "accelerate",
    "create_model",
    "explain",
    "info",
    "list_models",
    "load_checkpoint",
]


def __getattr__(name: str) -> Any:
    """Public names, imported when they are asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = {"accelerate": ".acceleration", "explain": ".explanation"}.get(name, ".models")
    return getattr(importlib.import_module(module, __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# timm gets to know the models here. It takes seconds to import, which the command line `visionattn` spends only in
# commands that need it, so that help and the list of models come at once.
if PurePath(sys.argv[0] if getattr(sys, "argv", None) else "").stem != "visionattn":
    from . import models  # noqa: F401
