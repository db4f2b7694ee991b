# SPDX-License-Identifier: Apache-2.0
"""Export to ONNX, with both sides run on fresh random images before the file gets its name."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.attention import SDPBackend, sdpa_kernel

from visionattn._files import replacing

MIN_OPSET = 18


class ExportError(ValueError):
    """The model's graph cannot be written as ONNX; no file was left."""


class ParityError(ExportError):
    """The exported graph disagrees with the model; no file was left."""


@dataclass(frozen=True)
class ExportReport:
    """What an export came to.

    Args:
        path: The ONNX file.
        opset: Its operator set version.
        input_size: Image size of the exported example, `(channels, height, width)`.
        dynamic_size: Whether other heights and widths are accepted; the batch size always is free.
        fixed_because: Why height and width are fixed; empty where they are not, or were asked to be.
        checked: Shapes of the random inputs that both sides ran on.
        max_relative_difference: Largest difference over these, relative to the largest output of the model.
    """

    path: str
    opset: int
    input_size: tuple[int, int, int]
    dynamic_size: bool
    fixed_because: str
    checked: list[tuple[int, ...]] = field(default_factory=list)
    max_relative_difference: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    input_size: Sequence[int] = (3, 224, 224),
    *,
    dynamic_size: bool = True,
    opset: int = 20,
    tolerance: float = 1e-4,
) -> ExportReport:
    """Write `model` as an ONNX file of one input `images`, `(B, C, H, W)`, and one output `logits`.

    The batch size is free. Height and width are too where the model's graph allows it; where it does not, they are
    fixed to `input_size` and the report says why. The file is checked by `onnx.checker` and run by onnxruntime on
    random images of two batch sizes, and of two image sizes where they are free; it gets its name only if all agree.

    Args:
        model: A classifier; its mode and device are restored afterwards.
        path: File to write; an older one stays as it is if anything fails.
        input_size: `(channels, height, width)` of the example.
        dynamic_size: False fixes height and width.
        opset: Operator set version, at least 18.
        tolerance: Largest accepted difference, relative to the largest output of the model.

    Raises:
        ValueError: An argument is out of range.
        ExportError: The model cannot be traced, written or run by onnxruntime.
        ParityError: The graph disagrees with the model by more than `tolerance`.
    """
    if len(input_size) != 3 or min(input_size) < 1:
        raise ValueError(f"input_size={tuple(input_size)} must be three positive numbers (channels, height, width)")
    if opset < MIN_OPSET:
        raise ValueError(f"opset={opset} is too old; use at least {MIN_OPSET}")
    if not tolerance > 0:
        raise ValueError(f"tolerance={tolerance} must be positive")
    channels, height, width = (int(n) for n in input_size)
    size = (channels, height, width)
    reason = ""
    with replacing(path) as temporary, _inference(model):
        free = dynamic_size
        if dynamic_size:
            try:
                checked = _write_checked(model, temporary, size, True, opset, tolerance)
            except Exception as error:  # whatever tracing, the exporter or the runtime trips over
                free, reason = False, _root_cause(error)
        if not free:
            try:
                checked = _write_checked(model, temporary, size, False, opset, tolerance)
            except ExportError:
                raise
            except Exception as error:
                raise ExportError(f"{type(model).__name__} cannot be exported: {_root_cause(error)}") from error
    return ExportReport(str(path), opset, size, free, reason, list(checked), max(checked.values()))


def _write_checked(
    model: nn.Module, path: Path, size: tuple[int, int, int], free: bool, opset: int, tolerance: float
) -> dict[tuple[int, ...], float]:
    """Write the file and return the difference for each shape it was run on; ParityError if one is too large."""
    example = torch.randn(2, *size)
    shapes = {0: Dim("batch"), 2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if free else {0: Dim("batch")}
    # The fused kernel's output has other strides than its decomposition, on which views that were traced would fail.
    with _quiet(), sdpa_kernel(SDPBackend.MATH):
        torch.onnx.export(
            model,
            (example,),
            str(path),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=(shapes,),
            opset_version=opset,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    onnx.checker.check_model(str(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    differences = {}
    for shape in _shapes_to_check(model, size, free):
        differences[shape] = _difference(model, session, torch.randn(shape))
        if not differences[shape] <= tolerance:  # a NaN fails too
            raise ParityError(
                f"the ONNX graph disagrees with the model by {differences[shape]:.2e} (relative) on a random input of "
                f"shape {shape}; at most {tolerance:.0e} is accepted, so no file was left"
            )
    return differences


def _shapes_to_check(model: nn.Module, size: tuple[int, int, int], free: bool) -> list[tuple[int, ...]]:
    channels, height, width = size
    shapes: list[tuple[int, ...]] = [(1, *size), (3, *size)]
    if free:
        odd = (2, channels, height + 37, width + 13)
        try:
            with torch.inference_mode():
                model(torch.randn(odd))
        except (AssertionError, RuntimeError, ValueError):  # the model itself wants multiples of its stride
            odd = (2, channels, height + 64, width + 32)
        shapes.append(odd)
    return shapes


def _difference(model: nn.Module, session: Any, images: Tensor) -> float:
    with torch.inference_mode():
        expected = model(images).double()
    (output,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    got = torch.from_numpy(output).double()
    if got.shape != expected.shape:
        raise ParityError(f"the ONNX graph gives {tuple(got.shape)} where the model gives {tuple(expected.shape)}")
    return float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


@contextlib.contextmanager
def _inference(model: nn.Module):
    """The model in eval mode on the CPU, and as it was afterwards."""
    training = {module: module.training for module in model.modules()}
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    try:
        yield model.eval().cpu()
    finally:
        model.to(device)
        for module, mode in training.items():
            module.training = mode


@contextlib.contextmanager
def _quiet():
    """Without the exporter's running commentary."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "torch.export")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _root_cause(error: BaseException) -> str:
    """First line of the innermost error: the exporters wrap it in advice and colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:240]}" if lines else type(error).__name__
