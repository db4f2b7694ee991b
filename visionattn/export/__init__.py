# SPDX-License-Identifier: Apache-2.0
"""ONNX files that are known to agree. Needs the extra `export` (`pip install "visionattn[export]"`)."""

from visionattn.export.onnx import ExportError, ExportReport, ParityError, export_onnx

__all__ = ["ExportError", "ExportReport", "ParityError", "export_onnx"]
