# SPDX-License-Identifier: Apache-2.0
"""Run exported files on photos by onnxruntime alone: neither PyTorch nor OpenMMLab is imported."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from visionattn.export.metadata import GraphInfo, Preparation, loads

DTYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}


@dataclass(frozen=True)
class Classified:
    """A classifier's answer: index of the class and its probability."""

    label: int
    confidence: float


@dataclass(frozen=True)
class Detected:
    """A detector's answer, in pixels of the photo.

    Args:
        boxes: `(N, 4)`: left, top, right, bottom.
        labels: `(N,)`, class indices.
        scores: `(N,)`, 0 to 1.
        masks: `(N, H, W)` bool, or None.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: np.ndarray | None


@dataclass(frozen=True)
class Placed:
    """A photo made ready: the pixels `(H, W, 3)`, and how much of them the photo fills.

    Args:
        pixels: RGB, 0 to 255, float32.
        filled: Height and width that the photo takes, from the top left.
    """

    pixels: np.ndarray
    filled: tuple[int, int]


class OnnxModel:
    """An exported file, ready to look at photos.

    Args:
        path: A file that `visionattn export` wrote.
        threads: Threads of onnxruntime; 0 for all cores.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no ONNX file, has no metadata of ours, or inputs and outputs other than these say.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int = 0) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"ONNX file {self.path} does not exist")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        providers = [name for name in onnxruntime.get_available_providers() if name.startswith(("CUDA", "CPU"))]
        try:
            self.session = onnxruntime.InferenceSession(str(self.path), options, providers=providers)
        except Exception as error:  # onnxruntime's own exceptions have no common base
            raise ValueError(f"{self.path} cannot be read by onnxruntime: {str(error).splitlines()[0]}") from None
        self.info = loads(self.session.get_modelmeta().custom_metadata_map, str(self.path))
        self._check_signature()

    def _check_signature(self) -> None:
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            raise ValueError(
                f"{self.path} has {len(inputs)} inputs ({', '.join(i.name for i in inputs)}); its metadata say one"
            )
        (only,) = inputs
        if len(only.shape) != 4 or DTYPES.get(only.type) != self.info.input_dtype:
            raise ValueError(
                f"{self.path}: input {only.name!r} is {only.type} of shape {only.shape}; its metadata say "
                f"{self.info.input_dtype}, {self.info.layout}"
            )
        found = tuple(output.name for output in self.session.get_outputs())
        if found != self.info.outputs:
            raise ValueError(
                f"{self.path} has the outputs {', '.join(found)}; its metadata say {', '.join(self.info.outputs)}"
            )

    def name(self, label: int) -> str:
        """Name of a class."""
        known = self.info.classes
        return known[label] if label < len(known) else f"class {label}"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; made up where the file has none."""
        if self.info.classes or self.info.task not in ("detection", "segmentation"):
            return self.info.classes
        return tuple(f"class {label}" for label in range(1000))

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name for one image of RGB pixels, `(H, W, 3)`, 0 to 255, of a size that the graph takes."""
        values = self.session.run(None, {self.session.get_inputs()[0].name: as_input(pixels, self.info)})
        return dict(zip(self.info.outputs, values, strict=True))

    def place(self, photo: np.ndarray) -> Placed:
        """A photo, `(H, W, 3)` uint8, at the size that the graph takes.

        Raises:
            ValueError: The file does not say how.
        """
        if self.info.preparation is None:
            raise ValueError(f"{self.path} does not say how photos get their size: it was exported without that")
        return place(photo, self.info)

    def features(self, photo: np.ndarray) -> dict[str, np.ndarray]:
        """Maps of a feature extractor by name, each `(1, C, H, W)`."""
        return self.run(self.place(photo).pixels)

    def classify(self, photo: np.ndarray) -> Classified:
        """The likeliest class of a photo, `(H, W, 3)` uint8 RGB."""
        logits = self.run(self.place(photo).pixels)["logits"][0].astype(np.float64)
        shifted = np.exp(logits - logits.max())
        label = int(logits.argmax())
        return Classified(label, float(shifted[label] / shifted.sum()))

    def segment(self, photo: np.ndarray) -> np.ndarray:
        """Class index of each pixel of a photo, `(H, W)`."""
        placed = self.place(photo)
        height, width = placed.filled
        name = self.info.outputs[0]
        found = self._windows(placed.pixels) if self.info.window else self.run(placed.pixels)[name][0]
        found = found[..., :height, :width]
        size = photo.shape[:2]
        if name == "class_map":
            return _resize(found.astype(np.float32), size, "nearest", False).astype(np.int64)
        logits = np.stack([_resize(plane, size, "bilinear", False) for plane in found])
        if len(logits) > 1:
            return logits.argmax(0)
        return (1 / (1 + np.exp(-logits[0])) > self.info.threshold).astype(np.int64)

    def _windows(self, pixels: np.ndarray) -> np.ndarray:
        """Logits that are averaged over overlapping windows, `(classes, H, W)`."""
        crop_height, crop_width, down, right = self.info.window or (0, 0, 0, 0)
        height, width = pixels.shape[:2]
        total: Any = 0.0
        count = np.zeros((height, width), np.float32)
        for top in _starts(height, crop_height, down):
            for left in _starts(width, crop_width, right):
                part = (slice(top, top + crop_height), slice(left, left + crop_width))
                logits = self.run(pixels[part])[self.info.outputs[0]][0]
                whole = np.zeros((len(logits), height, width), np.float32)
                whole[(slice(None), *part)] = logits
                total = total + whole
                count[part] += 1
        return np.asarray(total / count)

    def detect(self, photo: np.ndarray, score: float = 0.3) -> Detected:
        """Objects of at least a confidence in a photo, `(H, W, 3)` uint8 RGB.

        Raises:
            ValueError: `score` is not between 0 and 1.
        """
        if not 0 <= score <= 1:
            raise ValueError(f"score={score} must be between 0 and 1")
        placed = self.place(photo)
        found = self.run(placed.pixels)
        kept = found["scores"] >= score
        height, width = photo.shape[:2]
        limits = np.array([placed.filled[1], placed.filled[0]] * 2, np.float32)
        factors = np.array([width / placed.filled[1], height / placed.filled[0]] * 2, np.float32)
        boxes = np.clip(found["boxes"][kept], 0, limits) * factors
        masks = None
        if "masks" in found:
            masks = paste_masks(found["masks"][kept], boxes, (height, width), self.info.threshold)
        return Detected(boxes, found["labels"][kept], found["scores"][kept], masks)


def as_input(pixels: np.ndarray, info: GraphInfo) -> np.ndarray:
    """Input of a graph for one image of RGB pixels, `(H, W, 3)`, 0 to 255: normalised, unless the graph does that."""
    images = pixels.astype(np.float32)
    if not info.with_preprocessing:
        if info.channel_order == "BGR":
            images = images[..., ::-1]
        mean, std = (np.array(values, dtype=np.float32) for values in (info.mean, info.std))
        images = ((images - mean) / std).astype(np.float32)
    if info.layout == "NCHW":
        images = images.transpose(2, 0, 1)
    if info.input_dtype == "uint8":
        images = np.clip(np.rint(images), 0, 255)
    return np.ascontiguousarray(images[None], dtype=info.input_dtype)


def place(photo: np.ndarray, info: GraphInfo) -> Placed:
    """A photo at the size that a graph takes, as the metadata say.

    Args:
        photo: `(H, W, 3)` uint8 RGB.
        info: Of the graph; its preparation must be known.
    """
    preparation = info.preparation
    assert preparation is not None
    _, height, width = info.input_size
    size = height, width
    if preparation.mode == "stretch":
        return Placed(_resize(photo, size, preparation.interpolation, preparation.antialias), size)
    if preparation.mode == "crop":
        return Placed(_crop(photo, size, preparation), size)
    return _fit(photo, info, preparation)


def _crop(photo: np.ndarray, size: tuple[int, int], preparation: Preparation) -> np.ndarray:
    """The middle, after the photo was scaled to cover `size / crop_pct`; what reaches beyond it is black."""
    scaled = [int(np.floor(side / preparation.crop_pct)) for side in size]
    rows, columns = photo.shape[:2]
    whole = int if preparation.antialias else round  # torchvision cuts off to whole pixels, albumentations rounds
    if scaled[0] == scaled[1]:  # the shorter side gets this length
        short = scaled[0]
        target = (short, whole(short * columns / rows)) if rows <= columns else (whole(short * rows / columns), short)
    else:
        factor = max(scaled[0] / rows, scaled[1] / columns)
        target = (max(round(rows * factor), size[0]), max(round(columns * factor), size[1]))
    image = _resize(photo, target, preparation.interpolation, preparation.antialias)
    middle = [(have - want) / 2 for have, want in zip(target, size, strict=True)]
    top, left = (round(m) if preparation.antialias else int(m) for m in middle)
    return image[top : top + size[0], left : left + size[1]]


def _fit(photo: np.ndarray, info: GraphInfo, preparation: Preparation) -> Placed:
    rows, columns = photo.shape[:2]
    long, short = max(preparation.scale or (1, 1)), min(preparation.scale or (1, 1))
    factor = min(long / max(rows, columns), short / min(rows, columns))
    _, height, width = info.input_size
    free = info.dynamic_size or info.window is not None
    if not free:  # an upright photo before a graph for wide ones
        factor = min(factor, height / rows, width / columns)
    filled = (max(int(rows * factor + 0.5), 1), max(int(columns * factor + 0.5), 1))
    if not free:
        filled = (min(filled[0], height), min(filled[1], width))
    image = _resize(photo, filled, preparation.interpolation, preparation.antialias)
    least = info.window[:2] if info.window else (0, 0) if info.dynamic_size else (height, width)
    if filled[0] >= least[0] and filled[1] >= least[1]:
        return Placed(image, filled)
    # Pixels of the mean are zeros to the model.
    mean = np.array(info.mean, np.float32)[:: -1 if info.channel_order == "BGR" else 1]
    canvas = np.tile(mean, (max(least[0], filled[0]), max(least[1], filled[1]), 1))
    canvas[: filled[0], : filled[1]] = image
    return Placed(canvas, filled)


def _resize(image: np.ndarray, size: tuple[int, int], interpolation: str, antialias: bool) -> np.ndarray:
    """An image or a plane at another height and width, float32."""
    if image.shape[:2] == size:
        return image.astype(np.float32)
    if antialias and image.dtype == np.uint8:
        how = Image.Resampling[interpolation.upper()]
        return np.asarray(Image.fromarray(image).resize(size[::-1], how), dtype=np.float32)
    import cv2

    methods = {"nearest": cv2.INTER_NEAREST, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
    method = methods.get(interpolation, cv2.INTER_LANCZOS4)
    return np.asarray(cv2.resize(image, size[::-1], interpolation=method), dtype=np.float32)


def _starts(length: int, window: int, step: int) -> list[int]:
    """First pixels of windows that cover a length; the last one ends with it."""
    count = max(length - window + step - 1, 0) // step + 1
    return [max(min(i * step + window, length) - window, 0) for i in range(count)]


def paste_masks(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int], threshold: float) -> np.ndarray:
    """Pixels of objects from the probabilities in their boxes.

    Args:
        masks: `(N, S, S)` probabilities, which fill each box.
        boxes: `(N, 4)`: left, top, right, bottom in pixels.
        size: Height and width of the image.
        threshold: Least probability of a pixel.

    Returns:
        `(N, H, W)` bool.
    """
    pasted = np.zeros((len(masks), *size), dtype=bool)
    for i, (mask, (left, top, right, bottom)) in enumerate(zip(masks, boxes, strict=True)):
        rows = _weights(size[0], top, bottom, mask.shape[0])
        columns = _weights(size[1], left, right, mask.shape[1])
        pasted[i] = rows @ mask.astype(np.float32) @ columns.T >= threshold
    return pasted


def _weights(length: int, start: float, end: float, cells: int) -> np.ndarray:
    """Linear interpolation of cells between `start` and `end` at the middles of pixels, `(length, cells)`."""
    if end <= start:
        return np.zeros((length, cells), np.float32)
    position = (np.arange(length, dtype=np.float32) + 0.5 - start) / (end - start) * cells - 0.5
    return np.clip(1 - np.abs(position[:, None] - np.arange(cells, dtype=np.float32)), 0, None).astype(np.float32)


def summary(features: dict[str, Any]) -> str:
    """Names and shapes of maps in a line."""
    return ", ".join(f"{name} {'x'.join(map(str, value.shape))}" for name, value in features.items())
