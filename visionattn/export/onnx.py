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

import numpy as np
import onnx
import onnxruntime
import torch
from onnx_ir.passes import common as passes
from onnxscript.optimizer import fold_constants
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.attention import SDPBackend, sdpa_kernel

from visionattn._files import replacing
from visionattn.export.graphs import Preprocessed, Preprocessing, portable_pooling
from visionattn.export.metadata import KEY, GraphInfo
from visionattn.export.precision import PRECISIONS, check_calibration, to_float16, to_int8

MIN_OPSET = 18
MAX_FLIPPED = 1e-3
REDUCED_RUNS = 16


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
        dynamic_size: Whether other heights and widths are accepted.
        fixed_because: Why height and width are fixed; empty where they are not, or were asked to be.
        checked: Shapes of the random inputs that both sides ran on.
        max_relative_difference: Largest difference over these, relative to the largest value of each output.
        dynamic_batch: Whether any number of images is accepted.
        outputs: Names of the outputs.
        precision: "float32", "float16" or "int8".
        agreement: Of a float16 or int8 graph with the float32 one: number of images, their mean relative difference
            (of norms), and the share of equal decisions, of images (classes) or pixels; None for float32.
    """

    path: str
    opset: int
    input_size: tuple[int, int, int]
    dynamic_size: bool
    fixed_because: str
    checked: list[tuple[int, ...]] = field(default_factory=list)
    max_relative_difference: float = 0.0
    dynamic_batch: bool = True
    outputs: tuple[str, ...] = ("logits",)
    precision: str = "float32"
    agreement: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Plan:
    """What `export_onnx` was asked for."""

    size: tuple[int, int, int]
    dynamic_batch: bool
    opset: int
    tolerance: float
    outputs: tuple[str, ...]
    preprocessing: Preprocessing | None

    def random_images(self, batch: int, size: Sequence[int]) -> Tensor:
        if self.preprocessing is not None:
            return self.preprocessing.random_images(batch, size)
        return torch.randn(batch, *size)

    def dynamic_shapes(self, free: bool) -> dict[int, Any]:
        rows = 1 if self.preprocessing is not None and self.preprocessing.layout == "NHWC" else 2
        shapes: dict[int, Any] = {0: Dim("batch")} if self.dynamic_batch else {}
        return {**shapes, rows: Dim.DYNAMIC, rows + 1: Dim.DYNAMIC} if free else shapes


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    input_size: Sequence[int] = (3, 224, 224),
    *,
    dynamic_size: bool = True,
    dynamic_batch: bool = True,
    opset: int = 20,
    tolerance: float = 1e-4,
    outputs: Sequence[str] = ("logits",),
    preprocessing: Preprocessing | None = None,
    precision: str = "float32",
    calibration: Sequence[np.ndarray] = (),
    info: GraphInfo | None = None,
) -> ExportReport:
    """Write `model` as an ONNX file of one input `images`, `(B, C, H, W)`, and its named outputs.

    The batch size is free. Height and width are too where the model's graph allows it; where it does not, they are
    fixed to `input_size` and the report says why. The file is checked by `onnx.checker` and run by onnxruntime on
    random images of two batch sizes, and of two image sizes where they are free; it gets its name only if all agree.

    Args:
        model: A module of images to a tensor or a tuple of them; its mode and device are restored afterwards.
        path: File to write; an older one stays as it is if anything fails.
        input_size: `(channels, height, width)` of the example.
        dynamic_size: False fixes height and width.
        dynamic_batch: False takes one image at a time, as detectors do.
        opset: Operator set version, at least 18.
        tolerance: Largest accepted difference, relative to the largest value of each output. Of integer outputs, such
            as class maps, a share of `MAX_FLIPPED` may differ, where two classes are as likely.
        outputs: Names of the outputs, in order.
        preprocessing: Normalisation that the graph does itself; images are pixels of 0 to 255 then.
        precision: "float32"; "float16", weights and activations but not inputs, outputs and what needs more digits; or
            "int8", by static quantisation. What these change is reported, not bounded.
        calibration: Images for "int8", each `(1, ...)` as the graph takes them; at least 16.
        info: Facts for `visionattn predict --onnx`, kept in the file; what this export decides is filled in.

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
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} must be one of {', '.join(PRECISIONS)}")
    if not outputs:
        raise ValueError("outputs must name at least one output")
    if precision == "int8":
        if "boxes" in outputs:
            raise ValueError("precision='int8' is not for detectors, whose boxes need more digits; use 'float16'")
        check_calibration(len(calibration))
    channels, height, width = (int(n) for n in input_size)
    plan = _Plan((channels, height, width), dynamic_batch, opset, tolerance, tuple(outputs), preprocessing)
    reason = ""
    with replacing(path) as temporary, _inference(model):
        free = dynamic_size
        if dynamic_size:
            try:
                checked = _write_checked(model, temporary, plan, True)
            except Exception as error:  # whatever tracing, the exporter or the runtime trips over
                free, reason = False, _root_cause(error)
        if not free:
            try:
                checked = _write_checked(model, temporary, plan, False)
            except ExportError:
                raise
            except Exception as error:
                raise ExportError(f"{type(model).__name__} cannot be exported: {_root_cause(error)}") from error
        agreement = None
        if precision != "float32":
            agreement = _reduce(temporary, precision, calibration, plan)
        if info is not None:
            _describe(temporary, _completed(info, plan, free, precision))
    return ExportReport(
        path=str(path),
        opset=opset,
        input_size=plan.size,
        dynamic_size=free,
        fixed_because=reason,
        checked=list(checked),
        max_relative_difference=max(checked.values()),
        dynamic_batch=dynamic_batch,
        outputs=plan.outputs,
        precision=precision,
        agreement=agreement,
    )


def _write_checked(model: nn.Module, path: Path, plan: _Plan, free: bool) -> dict[tuple[int, ...], float]:
    """Write the file and return the difference for each shape it was run on; ParityError if one is too large."""
    wrapped = model if plan.preprocessing is None else Preprocessed(model, plan.preprocessing).eval()
    example = plan.random_images(2 if plan.dynamic_batch else 1, plan.size)
    # The fused kernel's output has other strides than its decomposition, on which views that were traced would fail.
    with _quiet(), sdpa_kernel(SDPBackend.MATH), portable_pooling(model), torch.no_grad():
        program: Any = torch.onnx.export(
            wrapped,
            (example,),
            input_names=["images"],
            output_names=list(plan.outputs),
            dynamic_shapes=(plan.dynamic_shapes(free),),
            opset_version=plan.opset,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
        _save(program, path)
    session = _session(path)
    differences = {}
    for batch, size in _sizes_to_check(model, plan, free):
        images = plan.random_images(batch, size)
        difference = differences[tuple(images.shape)] = _difference(wrapped, session, images, plan.outputs)
        if not difference <= plan.tolerance:  # a NaN fails too
            raise ParityError(
                f"the ONNX graph disagrees with the model by {difference:.2e} (relative) on a random input of "
                f"shape {tuple(images.shape)}; at most {plan.tolerance:.0e} is accepted, so no file was left"
            )
    return differences


def _save(program: Any, path: Path) -> None:
    """Write a program with its constants folded and what is repeated or unused left out.

    onnxscript's pattern rules stay out: they take as long as the export itself and leave some graphs invalid, and
    onnxruntime, which has rules of its own, runs none faster for them.
    """
    passes.InlinePass()(program.model)
    fold_constants(program.model)
    for change in (
        passes.IdentityEliminationPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.NameFixPass(),
    ):
        change(program.model)
    program.save(str(path), external_data=False)
    onnx.checker.check_model(str(path), full_check=True)


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _sizes_to_check(model: nn.Module, plan: _Plan, free: bool) -> list[tuple[int, tuple[int, int, int]]]:
    """Batch and image sizes."""
    channels, height, width = plan.size
    sizes = [(1, plan.size), (3 if plan.dynamic_batch else 1, plan.size)]
    if free:
        odd = (channels, height + 37, width + 13)
        try:
            with torch.inference_mode():
                model(torch.randn(2 if plan.dynamic_batch else 1, *odd))
        except (AssertionError, RuntimeError, ValueError):  # the model itself wants multiples of its stride
            odd = (channels, height + 64, width + 32)
        sizes.append((2 if plan.dynamic_batch else 1, odd))
    return sizes


def _difference(model: nn.Module, session: Any, images: Tensor, names: Sequence[str]) -> float:
    """Largest relative difference of any output; infinite where decisions differ."""
    with torch.inference_mode():
        expected = model(images)
    wanted = [expected] if isinstance(expected, Tensor) else list(expected)
    if len(wanted) != len(names):
        raise ValueError(f"outputs={tuple(names)} name {len(names)} outputs; the model has {len(wanted)}")
    given = [torch.from_numpy(v) for v in session.run(None, {session.get_inputs()[0].name: images.numpy()})]
    if "boxes" in names:
        return detection_difference(dict(zip(names, wanted, strict=True)), dict(zip(names, given, strict=True)))
    worst = 0.0
    for name, ours, theirs in zip(names, wanted, given, strict=True):
        if ours.shape != theirs.shape:
            raise ParityError(
                f"the ONNX graph gives {name} of shape {tuple(theirs.shape)} where the model gives {tuple(ours.shape)}"
            )
        if ours.is_floating_point():
            scale = ours.double().abs().max().clamp(min=1e-12)
            worst = max(worst, float((ours.double() - theirs.double()).abs().max() / scale))
        elif float((ours != theirs).double().mean()) > MAX_FLIPPED:
            return float("inf")
    return worst


def detection_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Largest relative difference of a detection from the one of the other side that is most like it.

    The order of detections that are as likely is chance, and so is which of the least likely ones make the list.

    Args:
        ours: `boxes` `(N, 4)`, `scores` `(N,)`, `labels` `(N,)` and maybe `masks` `(N, S, S)`.
        theirs: Likewise.

    Returns:
        Largest difference of box (relative to the furthest corner), score (to the best one) and mask; infinite where
        a detection has no partner of its label.
    """
    extent = float(max(ours["boxes"].abs().max() if len(ours["boxes"]) else 0.0, 1.0))
    top = float(max(ours["scores"].max() if len(ours["scores"]) else 0.0, 1e-6))
    worst = 0.0
    for some, other in ((ours, theirs), (theirs, ours)):
        if not len(some["scores"]):
            continue
        sure = some["scores"] > some["scores"].min() + 1e-4 * top
        if not len(other["scores"]):
            return float("inf") if bool(sure.any()) else worst
        apart = (some["boxes"][:, None] - other["boxes"][None]).abs().amax(-1) / extent
        apart = torch.maximum(apart, (some["scores"][:, None] - other["scores"][None]).abs() / top)
        apart = apart.masked_fill(some["labels"][:, None] != other["labels"][None], float("inf"))
        nearest, partner = apart.min(1)
        if "masks" in some:
            nearest = torch.maximum(nearest, (some["masks"] - other["masks"][partner]).abs().amax((1, 2)))
        worst = max([worst, *nearest[sure].tolist()])
    return worst


def _reduce(path: Path, precision: str, calibration: Sequence[np.ndarray], plan: _Plan) -> dict[str, float]:
    """Rewrite the file in fewer bits, and say how that agrees with what it was."""
    if precision == "int8":
        images = [np.ascontiguousarray(image) for image in calibration]
    else:
        images = [plan.random_images(1, plan.size).numpy() for _ in range(REDUCED_RUNS)]
    name = "images"
    session = _session(path)
    before = [session.run(None, {name: image}) for image in images]
    try:
        if precision == "int8":
            to_int8(path, name, images)
        else:
            to_float16(path)
        onnx.checker.check_model(str(path))
        session = _session(path)
        after = [session.run(None, {name: image}) for image in images]
    except Exception as error:  # the tools raise whatever they trip over
        raise ExportError(f"the float32 graph cannot be written as {precision}: {_root_cause(error)}") from error
    return _agreement(before, after, plan.outputs)


def _agreement(before: list[Any], after: list[Any], names: Sequence[str]) -> dict[str, float]:
    """Mean relative difference of norms, and the share of equal decisions."""
    result: dict[str, float] = {"images": float(len(before))}
    if "boxes" in names:
        place = list(names).index("scores")
        shifts = [abs(float(a[place].sum()) - float(b[place].sum())) for a, b in zip(before, after, strict=True)]
        result["score_difference"] = float(np.mean(shifts))
        result["equal_count"] = float(
            np.mean([len(a[place]) == len(b[place]) for a, b in zip(before, after, strict=True)])
        )
        return result
    differences, equal = [], []
    for old, new in zip(before, after, strict=True):
        for a, b in zip(old, new, strict=True):
            if np.issubdtype(a.dtype, np.floating):
                a, b = a.astype(np.float64), b.astype(np.float64)
                differences.append(float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(a)), 1e-12))
        if names[0] in ("logits", "class_map"):
            first, second = old[0], new[0]
            if names[0] == "logits" and first.shape[1] > 1:
                first, second = first.argmax(1), second.argmax(1)
            elif names[0] == "logits":
                first, second = first > 0, second > 0
            equal.append(np.mean(first == second))
    if differences:
        result["relative_difference"] = float(np.mean(differences))
    if equal:
        result["same_decision"] = float(np.mean(equal))
    return result


def _completed(info: GraphInfo, plan: _Plan, free: bool, precision: str) -> GraphInfo:
    """Facts with what the export decided."""
    inside = plan.preprocessing
    return info.with_(
        input_size=plan.size,
        outputs=plan.outputs,
        dynamic_batch=plan.dynamic_batch,
        dynamic_size=free,
        precision=precision,
        with_preprocessing=inside is not None,
        layout="NCHW" if inside is None else inside.layout,
        input_dtype="float32" if inside is None else inside.dtype,
    )


def _describe(path: Path, info: GraphInfo) -> None:
    """Keep facts in a file's `metadata_props`."""
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {KEY: info.dumps()})
    onnx.save(model, str(path))


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
