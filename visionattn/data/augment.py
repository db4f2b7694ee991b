# SPDX-License-Identifier: Apache-2.0
"""timm's RandAugment and AutoAugment policies with OpenCV doing the pixels.

timm decides, from a policy string such as "rand-m9-mstd0.5-inc1", which operations run and how strongly; here are the
operations, on `(H, W, 3)` uint8 RGB arrays instead of Pillow images. For the same random state both choose the same.

Papers: RandAugment, https://arxiv.org/abs/1909.13719; AutoAugment, https://arxiv.org/abs/1805.09501;
3-Augment, https://arxiv.org/abs/2204.07118.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps
from timm.data.auto_augment import (
    AugmentOp,
    AutoAugment,
    RandAugment,
    auto_augment_transform,
    rand_augment_transform,
)
from timm.data.transforms import str_to_pil_interp
from torchvision import transforms

LEVELS = np.arange(256)
# What Pillow calls SMOOTH.
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def build_policy(
    name: str, size: Sequence[int], mean: Sequence[float], interpolation: str = "bicubic", pillow: bool = False
) -> RandAugment | AutoAugment:
    """Policy of timm by its name, as a function of an RGB array `(H, W, 3)` uint8 to one of the same shape.

    Args:
        name: timm's policy string: `rand-…`, `v0`, `v0r`, `original`, `originalr` or `3a`.
        size: Height and width of the images in pixels; translations follow.
        mean: Mean of the normalisation, 0 to 1: the colour of what lies beyond an image's border.
        interpolation: "bilinear", "bicubic" or "random".
        pillow: Keep timm's own operations, on Pillow images.

    Raises:
        ValueError: timm knows no such policy, or an operation of it is not among ours.
    """
    settings: dict[str, Any] = {
        "translate_const": int(min(size) * 0.45),
        "img_mean": tuple(min(255, round(255 * value)) for value in mean),
    }
    if interpolation != "random":
        settings["interpolation"] = str_to_pil_interp(interpolation)
    build = rand_augment_transform if name.startswith("rand") else auto_augment_transform
    try:
        policy = build(name, settings)
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(
            f"auto_augment={name!r} is no policy of timm ({error}); it is like 'rand-m9-mstd0.5-inc1', or one of "
            "'v0', 'v0r', 'original', 'originalr', '3a'"
        ) from error
    for operation in operations(policy):
        if not pillow and operation.name not in OPERATIONS:
            raise ValueError(f"auto_augment={name!r}: {operation.name} needs backend='timm'")
        if not pillow:
            operation.aug_fn = OPERATIONS[operation.name]
        elif operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize_pillow
    return policy


def operations(policy: RandAugment | AutoAugment) -> list[AugmentOp]:
    """All operations of a policy."""
    return list(policy.ops) if isinstance(policy, RandAugment) else [op for part in policy.policy for op in part]


def _posterize_pillow(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """At 0 bits, which timm asks for at times, newer Pillows raise and older ones made black."""
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


def _table(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Each level replaced by `values[level]`, cut off at 0 and 255; a table for all channels or one for each."""
    table = values.clip(0, 255).astype(np.uint8)
    return cv2.LUT(image, table if table.ndim == 1 else table.T[None])


def _warp(image: np.ndarray, matrix: Sequence[Sequence[float]], fillcolor: Sequence[int], resample: Any) -> np.ndarray:
    """Affine map of pixel centres: `matrix`, `(2, 3)`, takes places in the result to places in `image`."""
    if isinstance(resample, (list, tuple)):
        resample = random.choice(resample)
    how = cv2.INTER_CUBIC if resample == str_to_pil_interp("bicubic") else cv2.INTER_LINEAR
    inverse = np.array(matrix, np.float64)
    inverse[:, 2] += inverse[:, :2].sum(1) / 2 - 0.5  # OpenCV counts from the centre of the first pixel
    height, width = image.shape[:2]
    return cv2.warpAffine(
        image, inverse, (width, height), flags=how | cv2.WARP_INVERSE_MAP, borderValue=tuple(map(int, fillcolor))
    )


def _affine(matrix: Callable[[float, int, int], Sequence[Sequence[float]]]) -> Callable[..., np.ndarray]:
    def operation(image: np.ndarray, level: float, fillcolor: Any = (128,) * 3, resample: Any = None) -> np.ndarray:
        return _warp(image, matrix(level, *image.shape[:2]), fillcolor, resample)

    return operation


def _rotation(degrees: float, height: int, width: int) -> list[list[float]]:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]]


def _histograms(image: np.ndarray) -> np.ndarray:
    """Number of pixels of each level, `(3, 256)`."""
    return np.stack([cv2.calcHist([image], [i], None, [256], [0, 256]).ravel() for i in range(3)]).astype(np.int64)


def _auto_contrast(image: np.ndarray, **_: Any) -> np.ndarray:
    tables = np.stack([LEVELS] * 3).astype(np.float64)
    for table, counts in zip(tables, _histograms(image), strict=True):
        low, high = np.flatnonzero(counts)[[0, -1]]
        if high > low:
            table[:] = np.trunc((LEVELS - low) * (255 / (high - low)))
    return _table(image, tables)


def _equalize(image: np.ndarray, **_: Any) -> np.ndarray:
    tables = np.stack([LEVELS] * 3)
    for table, counts in zip(tables, _histograms(image), strict=True):
        step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
        if step:
            table[:] = (step // 2 + counts.cumsum() - counts) // step
    return _table(image, tables)


def _invert(image: np.ndarray, **_: Any) -> np.ndarray:
    return cv2.bitwise_not(image)


def _solarize(image: np.ndarray, threshold: int, **_: Any) -> np.ndarray:
    return _table(image, np.where(threshold > LEVELS, LEVELS, 255 - LEVELS))


def _solarize_add(image: np.ndarray, add: int, **_: Any) -> np.ndarray:
    return _table(image, np.where(LEVELS < 128, LEVELS + add, LEVELS))


def _posterize(image: np.ndarray, bits: int, **_: Any) -> np.ndarray:
    return image if bits >= 8 else _table(image, LEVELS & ~(2 ** (8 - bits) - 1))


def _brightness(image: np.ndarray, factor: float, **_: Any) -> np.ndarray:
    return _table(image, np.trunc(LEVELS * factor))


def _contrast(image: np.ndarray, factor: float, **_: Any) -> np.ndarray:
    mean = int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return _table(image, np.trunc(mean + factor * (LEVELS - mean)))


def _color(image: np.ndarray, factor: float, **_: Any) -> np.ndarray:
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, factor, gray, 1 - factor, 0)


def _desaturate(image: np.ndarray, factor: float, **_: Any) -> np.ndarray:
    return _color(image, min(1.0, max(0.0, 1 - factor)))


def _sharpness(image: np.ndarray, factor: float, **_: Any) -> np.ndarray:
    smooth = image.copy()  # pixels at the border have too few neighbours and stay
    smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, SMOOTH)[1:-1, 1:-1]
    return cv2.addWeighted(image, factor, smooth, 1 - factor, 0)


def _gaussian_blur(image: np.ndarray, sigma: float, **_: Any) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), max(sigma, 1e-3))


def _gaussian_blur_rand(image: np.ndarray, factor: float, **_: Any) -> np.ndarray:
    return _gaussian_blur(image, random.uniform(0.1, 2.0 * factor))


def _hue(image: np.ndarray, shift: float, **_: Any) -> np.ndarray:
    turned = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    turned[..., 0] += np.uint8(int(shift * 255) % 256)
    return cv2.cvtColor(turned, cv2.COLOR_HSV2RGB_FULL)


class ColorJitter:
    """The colour jitter of torchvision on RGB arrays `(H, W, 3)` uint8, with its draws.

    Args:
        changes: Largest change of brightness, contrast, saturation and, where given, hue.
    """

    def __init__(self, changes: Sequence[float]) -> None:
        self.ranges = transforms.ColorJitter(*changes)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The image in other colours."""
        ranges = self.ranges
        order, *drawn = ranges.get_params(ranges.brightness, ranges.contrast, ranges.saturation, ranges.hue)
        for which in order.tolist():
            if drawn[which] is not None:
                image = (_brightness, _contrast, _color, _hue)[which](image, drawn[which])
        return image


OPERATIONS: dict[str, Callable[..., np.ndarray]] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": _invert,
    "Rotate": _affine(_rotation),
    "Posterize": _posterize,
    "PosterizeIncreasing": _posterize,
    "PosterizeOriginal": _posterize,
    "Solarize": _solarize,
    "SolarizeIncreasing": _solarize,
    "SolarizeAdd": _solarize_add,
    "Color": _color,
    "ColorIncreasing": _color,
    "Contrast": _contrast,
    "ContrastIncreasing": _contrast,
    "Brightness": _brightness,
    "BrightnessIncreasing": _brightness,
    "Sharpness": _sharpness,
    "SharpnessIncreasing": _sharpness,
    "ShearX": _affine(lambda level, height, width: [[1, level, 0], [0, 1, 0]]),
    "ShearY": _affine(lambda level, height, width: [[1, 0, 0], [level, 1, 0]]),
    "TranslateX": _affine(lambda level, height, width: [[1, 0, level], [0, 1, 0]]),
    "TranslateY": _affine(lambda level, height, width: [[1, 0, 0], [0, 1, level]]),
    "TranslateXRel": _affine(lambda level, height, width: [[1, 0, level * width], [0, 1, 0]]),
    "TranslateYRel": _affine(lambda level, height, width: [[1, 0, 0], [0, 1, level * height]]),
    "Desaturate": _desaturate,
    "GaussianBlur": _gaussian_blur,
    "GaussianBlurRand": _gaussian_blur_rand,
}
