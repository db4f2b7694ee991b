# SPDX-License-Identifier: Apache-2.0
"""What an ONNX file says about itself: task, classes, and how a photo becomes its input. Needs no PyTorch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

KEY = "visionattn"
TASKS = ("classification", "features", "segmentation", "detection")
RESIZES = ("crop", "stretch", "fit")


@dataclass(frozen=True)
class Preparation:
    """How a photo becomes an image of the size that a graph takes.

    Args:
        mode: "crop" scales the shorter side to `1 / crop_pct` of the input and cuts out the middle; "stretch" scales
            to exactly the input's size; "fit" keeps the ratio within `scale`, and fills up right and below with zeros
            where the graph's size is fixed.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
        antialias: Smooth when an image gets smaller, as Pillow does; False samples points, as OpenCV does.
        crop_pct: Share of the shorter side that the crop keeps.
        scale: Longest and shortest side in pixels, of "fit".
    """

    mode: Literal["crop", "stretch", "fit"] = "crop"
    interpolation: str = "bilinear"
    antialias: bool = False
    crop_pct: float = 1.0
    scale: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.mode not in RESIZES:
            raise ValueError(f"mode={self.mode!r} must be one of {', '.join(RESIZES)}")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct={self.crop_pct} must be above 0 and at most 1")
        if self.mode == "fit" and self.scale is None:
            raise ValueError("mode='fit' needs scale, the longest and shortest side")


@dataclass(frozen=True)
class GraphInfo:
    """Facts that `visionattn predict --onnx` needs, kept in the file's `metadata_props`.

    Args:
        task: "classification", "features", "segmentation" or "detection".
        model: Name of the model, or of its config.
        input_size: `(channels, height, width)` of the example.
        mean: Mean of each channel, for pixels of 0 to 255, in the order of `channel_order`.
        std: Standard deviation of each channel, likewise.
        preparation: How a photo gets its size; None where that is not known.
        classes: Class names; empty where they are not known.
        channel_order: "RGB" or "BGR", of what the model takes.
        outputs: Names of the outputs.
        dynamic_batch: Whether any number of images is taken.
        dynamic_size: Whether any height and width is taken.
        precision: "float32", "float16" or "int8".
        with_preprocessing: Whether the graph normalises itself; it takes RGB pixels of 0 to 255 then.
        layout: "NCHW" or "NHWC", of the input.
        input_dtype: "float32" or "uint8".
        palette: RGB colour of each class, or None.
        threshold: Of the probability of a mask's or single class's pixels.
        window: Height and width of the windows that are moved over an image, and their steps; None for none.
        ignore_index: Label of pixels of no class.
    """

    task: str
    model: str
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    preparation: Preparation | None = None
    classes: tuple[str, ...] = ()
    channel_order: str = "RGB"
    outputs: tuple[str, ...] = ("logits",)
    dynamic_batch: bool = True
    dynamic_size: bool = False
    precision: str = "float32"
    with_preprocessing: bool = False
    layout: str = "NCHW"
    input_dtype: str = "float32"
    palette: tuple[tuple[int, ...], ...] | None = None
    threshold: float = 0.5
    window: tuple[int, int, int, int] | None = None
    ignore_index: int = 255

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task={self.task!r} must be one of {', '.join(TASKS)}")
        if not len(self.mean) == len(self.std) == self.input_size[0]:
            raise ValueError(
                f"mean={self.mean} and std={self.std} must have a number for each of {self.input_size[0]} channels"
            )

    def with_(self, **changes: Any) -> GraphInfo:
        """A copy with other values."""
        return replace(self, **changes)

    def dumps(self) -> str:
        """JSON text for `metadata_props`."""
        return json.dumps(asdict(self), ensure_ascii=False)


def loads(properties: Mapping[str, str], name: str) -> GraphInfo:
    """Facts of a file's `metadata_props`.

    Args:
        properties: All properties of the file.
        name: The file's, for messages.

    Raises:
        ValueError: The file was not written by `visionattn export`, or by a version that this one does not know.
    """
    if KEY not in properties:
        raise ValueError(
            f"{name} has no metadata {KEY!r}, so its task, classes and preprocessing are not known; "
            "write it by `visionattn export`"
        )
    try:
        values = json.loads(properties[KEY])
        known = {field.name for field in fields(GraphInfo)}
        values = {key: _tuples(value) for key, value in values.items() if key in known}
        if values.get("preparation") is not None:
            values["preparation"] = Preparation(**values["preparation"])
        return GraphInfo(**values)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"the metadata {KEY!r} of {name} cannot be read: {error}") from None


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    if isinstance(value, list):
        return tuple(_tuples(part) for part in value)
    if isinstance(value, dict):
        return {key: _tuples(part) for key, part in value.items()}
    return value
