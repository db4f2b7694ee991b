# SPDX-License-Identifier: Apache-2.0
"""ONNX files that are known to agree. Needs the extra `export` (`pip install "visionattn[export]"`)."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visionattn.export.graphs import FeatureMaps, Preprocessing
    from visionattn.export.metadata import GraphInfo, Preparation
    from visionattn.export.onnx import ExportError, ExportReport, ParityError, export_onnx
    from visionattn.export.runtime import OnnxModel

_PLACES = {
    **dict.fromkeys(("ExportError", "ExportReport", "ParityError", "export_onnx"), "onnx"),
    **dict.fromkeys(("FeatureMaps", "Preprocessing"), "graphs"),
    **dict.fromkeys(("GraphInfo", "Preparation"), "metadata"),
    "OnnxModel": "runtime",
}

__all__ = [
    "ExportError",
    "ExportReport",
    "FeatureMaps",
    "GraphInfo",
    "OnnxModel",
    "ParityError",
    "Preparation",
    "Preprocessing",
    "export_onnx",
]


def __getattr__(name: str) -> Any:
    """Public names, imported when they are asked for: files are run without PyTorch."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
