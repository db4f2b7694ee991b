# SPDX-License-Identifier: Apache-2.0
"""Smaller ONNX graphs: half precision, and 8-bit integers from a few calibration images."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers import float16
from onnxruntime.transformers.onnx_model import OnnxModel as OnnxGraph

PRECISIONS = ("float32", "float16", "int8")
MIN_CALIBRATION = 16
# Products of two activations, as in attention, stay in float32, as do norms and softmax.
QUANTISED = ["Conv", "Gemm", "MatMul"]
# Positions and boxes need more digits than half precision has; the reductions are those of layer norms.
SENSITIVE = ["GridSample", "LayerNormalization", "ReduceMean", "ReduceSum", "Pow", "Sqrt", "Reciprocal"]


def to_float16(path: Path) -> None:
    """Rewrite a float32 file with weights and activations in float16; its inputs and outputs stay float32."""
    model = onnx.load(str(path))
    blocked = [*float16.DEFAULT_OP_BLOCK_LIST, *SENSITIVE]
    with _quiet():
        model = float16.convert_float_to_float16(model, keep_io_types=True, op_block_list=blocked)
        _drop_repeated_casts(model.graph)
        OnnxGraph(model).topological_sort()  # casts of inputs were added at the end
    onnx.save(model, str(path))


def _drop_repeated_casts(graph: onnx.GraphProto) -> None:
    """Leave one cast of a weight that several float32 operators share; the converter adds one for each, of one name."""
    seen: set[str] = set()
    for node in list(graph.node):
        if node.op_type == "Cast" and node.output[0] in seen:
            graph.node.remove(node)
        seen.update(node.output)


def to_int8(path: Path, name: str, images: Sequence[np.ndarray]) -> None:
    """Rewrite a float32 file with 8-bit weights, one scale a channel, and 8-bit activations, by QuantizeLinear pairs.

    Args:
        path: The file.
        name: Name of its input.
        images: Inputs of one image each, as the graph takes them.
    """
    prepared = path.with_name(f"{path.stem}.prepared{path.suffix}")
    written = path.with_name(f"{path.stem}.int8{path.suffix}")
    try:
        with _quiet():
            # Symbolic shapes are torch's own already; onnxruntime's inference of them fails on some graphs.
            quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared),
                str(written),
                _Reader(name, images),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=QUANTISED,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},
            )
        written.replace(path)
    finally:
        for file in (prepared, written):
            file.unlink(missing_ok=True)


def check_calibration(count: int) -> None:
    """Raise ValueError unless there are images enough for quantisation."""
    if count < MIN_CALIBRATION:
        raise ValueError(f"int8 needs at least {MIN_CALIBRATION} calibration images; there are {count}")


class _Reader(quantization.CalibrationDataReader):
    """One input after another."""

    def __init__(self, name: str, images: Sequence[np.ndarray]) -> None:
        self.name, self.images = name, iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else {self.name: image}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the tools' advice to run them again with other options."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
