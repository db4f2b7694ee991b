# SPDX-License-Identifier: Apache-2.0
"""ImageNet's training augmentation and evaluation crop: one description, done by OpenCV or by timm.

A description is `dict(type="ImageNetTrain", …)` or `dict(type="ImageNetEval", …)`, given as a data set's `pipeline`.
Its `backend` says who does the work: "albumentations" (OpenCV decodes, warps and recolours, PyTorch's antialiased
kernel resizes, and any transform of albumentations may follow) or "timm" (its transforms on Pillow images). Both draw
the same crops, flips, policies and colours from the same random state, and their evaluation crops agree to a fraction
of a grey level.
"""

from __future__ import annotations

import dataclasses
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import AutoAugment, RandAugment
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_pil_interp
from torch import Tensor
from torch.nn import functional as F

from visionattn.data.augment import ColorJitter, build_policy
from visionattn.data.images import REDUCTIONS, check_whole, decode_image, open_image, to_rgb

BACKENDS = ("albumentations", "timm")
CROP_MODES = ("center", "squash", "border")
ANTIALIASED = ("bilinear", "bicubic")  # what PyTorch resizes as Pillow does
FILTERS = (*ANTIALIASED, "nearest", "box", "hamming", "lanczos")


@dataclasses.dataclass(frozen=True)
class ImageNetEval:
    """What an image becomes for evaluation: resized, cropped at its centre, normalised.

    Args:
        size: Side, or height and width, in pixels.
        crop_pct: The crop's side by that of the resized image.
        crop_mode: "center" keeps the aspect ratio and cuts what is beyond the crop; "squash" does not keep it; "border"
            keeps it and fills up with the mean colour.
        interpolation: "bilinear", "bicubic", "nearest", "box", "hamming" or "lanczos".
        mean: Of the normalisation, 0 to 1, one a channel.
        std: Of the normalisation, 0 to 1, one a channel.
        backend: "albumentations" or "timm".

    Raises:
        ValueError: An argument is not among the allowed values.
    """

    size: int | Sequence[int] = 224
    crop_pct: float = 0.875
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN
    std: Sequence[float] = IMAGENET_DEFAULT_STD
    backend: str = "albumentations"

    def __post_init__(self) -> None:
        _check_common(self, FILTERS)
        _check_in("crop_mode", self.crop_mode, CROP_MODES)
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct={self.crop_pct!r} must lie above 0 and be at most 1")

    @classmethod
    def from_data_config(cls, config: Mapping[str, Any], backend: str = "albumentations") -> ImageNetEval:
        """Description from what `timm.data.resolve_data_config` says of a model."""
        names = ("crop_pct", "crop_mode", "interpolation", "mean", "std")
        known = {name: config[name] for name in names if config.get(name) is not None}
        return cls(size=tuple(config["input_size"][-2:]), backend=backend, **known)

    def build(self) -> ImagePipeline:
        """The pipeline."""
        return TimmPipeline(self) if self.backend == "timm" else OpenCVEval(self)


@dataclasses.dataclass(frozen=True)
class ImageNetTrain:
    """What an image becomes for training: a random part of it, resized, augmented, normalised.

    Args:
        size: Side, or height and width, in pixels.
        scale: Least and largest part of the image's area that is taken.
        ratio: Least and largest width by height of the part.
        hflip: Probability of mirroring left and right.
        vflip: Probability of mirroring top and bottom.
        auto_augment: timm's policy string, such as "rand-m9-mstd0.5-inc1"; None for none.
        color_jitter: Largest change of brightness, contrast and saturation, one number or three, or four with hue;
            as in timm it counts where there is no policy, or "3a". None for none.
        interpolation: "bilinear", "bicubic" or "random", which is one of both.
        erase_prob: Probability of erasing a rectangle (https://arxiv.org/abs/1708.04896).
        erase_mode: What fills it: "const" (the mean colour), "rand" (one normal colour) or "pixel" (normal noise).
        erase_count: Most rectangles of an image.
        mean: Of the normalisation, 0 to 1, one a channel.
        std: Of the normalisation, 0 to 1, one a channel.
        extra: albumentations transforms, `dict(type="Name", …)` each, between augmentation and normalisation.
        backend: "albumentations" or "timm", which takes no `extra`.

    Raises:
        ValueError: An argument is not among the allowed values.
    """

    size: int | Sequence[int] = 224
    scale: Sequence[float] = (0.08, 1.0)
    ratio: Sequence[float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    vflip: float = 0.0
    auto_augment: str | None = None
    color_jitter: float | Sequence[float] | None = 0.4
    interpolation: str = "bicubic"
    erase_prob: float = 0.0
    erase_mode: str = "pixel"
    erase_count: int = 1
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN
    std: Sequence[float] = IMAGENET_DEFAULT_STD
    extra: Sequence[Mapping[str, Any]] = ()
    backend: str = "albumentations"

    def __post_init__(self) -> None:
        _check_common(self, (*ANTIALIASED, "random"))
        _check_in("erase_mode", self.erase_mode, ("const", "rand", "pixel"))
        for name in ("hflip", "vflip", "erase_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must lie between 0 and 1")
        for name, most in (("scale", 1.0), ("ratio", math.inf)):
            value = getattr(self, name)
            if len(value) != 2 or not 0 < value[0] <= value[1] <= most:
                raise ValueError(f"{name}={tuple(value)!r} must be two numbers above 0, the smaller one first")
        if self.erase_count < 1:
            raise ValueError(f"erase_count={self.erase_count!r} must be at least 1")
        if self.extra and self.backend == "timm":
            raise ValueError("extra: transforms of albumentations need backend='albumentations'")
        if self.jitters and len(self.jitter) not in (3, 4):
            raise ValueError(f"color_jitter={self.color_jitter!r} must be one number, three, or four with hue")

    @property
    def jitter(self) -> tuple[float, ...]:
        """Changes of brightness, contrast, saturation and perhaps hue."""
        value = self.color_jitter or 0.0
        return tuple(value) if isinstance(value, Sequence) else (float(value),) * 3

    @property
    def jitters(self) -> bool:
        """Whether colours are jittered, which timm leaves to a policy where there is one, except "3a"."""
        return bool(self.color_jitter) and (not self.auto_augment or "3a" in self.auto_augment)

    def build(self) -> ImagePipeline:
        """The pipeline."""
        return TimmPipeline(self) if self.backend == "timm" else OpenCVTrain(self)


DESCRIPTIONS: dict[str, type[ImageNetEval] | type[ImageNetTrain]] = {
    "ImageNetEval": ImageNetEval,
    "ImageNetTrain": ImageNetTrain,
}


class ImagePipeline(ABC):
    """Encoded images, or arrays, to normalised tensors `(3, H, W)`, in two parts.

    What can go wrong with a file goes wrong in `decode`; `finish` takes what that returned. Random numbers are
    Python's, NumPy's and PyTorch's: see `own_randomness`.
    """

    @abstractmethod
    def decode(self, content: bytes, source: str) -> Any:
        """Image of a file's bytes, for `finish`; raises ValueError naming `source` if there is none."""

    @abstractmethod
    def prepare(self, image: np.ndarray) -> Any:
        """An RGB array `(H, W, 3)` uint8, for `finish`."""

    @abstractmethod
    def finish(self, image: Any) -> Tensor:
        """Normalised tensor `(3, H, W)` float32."""

    def __call__(self, image: np.ndarray) -> dict[str, Tensor]:
        """`{"image": (3, H, W)}` of an RGB array, as albumentations' pipelines have it."""
        return {"image": self.finish(self.prepare(image))}


class TimmPipeline(ImagePipeline):
    """timm's transforms on Pillow images.

    Args:
        description: What to do.
    """

    def __init__(self, description: ImageNetEval | ImageNetTrain) -> None:
        settings = dataclasses.asdict(description)
        size = _pair(settings.pop("size"))
        common = {"input_size": (3, *size), **{k: settings[k] for k in ("interpolation", "mean", "std")}}
        if isinstance(description, ImageNetEval):
            self.transform = create_transform(**common, crop_pct=description.crop_pct, crop_mode=description.crop_mode)
            return
        policy = None
        if description.auto_augment:
            name, mean = description.auto_augment, description.mean
            policy = build_policy(name, size, mean, description.interpolation, pillow=True)
        self.transform = create_transform(
            **common,
            is_training=True,
            **{name: settings[name] for name in ("scale", "ratio", "hflip", "vflip", "auto_augment")},
            color_jitter=description.jitter if description.jitters else None,  # type: ignore[arg-type]
            re_prob=description.erase_prob,
            re_mode=description.erase_mode,
            re_count=description.erase_count,
        )
        steps = self.transform.transforms
        self.transform.transforms = [policy if isinstance(step, (RandAugment, AutoAugment)) else step for step in steps]

    def decode(self, content: bytes, source: str) -> Image.Image:
        """See `ImagePipeline`."""
        check_whole(content, source)
        return to_rgb(open_image(content, source), source)

    def prepare(self, image: np.ndarray) -> Image.Image:
        """See `ImagePipeline`."""
        return Image.fromarray(image)

    def finish(self, image: Image.Image) -> Tensor:
        """See `ImagePipeline`."""
        return self.transform(image)


class OpenCVEval(ImagePipeline):
    """Evaluation on arrays.

    Args:
        description: What to do.
    """

    def __init__(self, description: ImageNetEval) -> None:
        self.description = description
        self.size = _pair(description.size)
        self.scaled = tuple(math.floor(side / description.crop_pct) for side in self.size)
        self.normalize = Normalize(description.mean, description.std)

    def decode(self, content: bytes, source: str) -> np.ndarray:
        """See `ImagePipeline`."""
        return decode_image(content, source, upright=False)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """See `ImagePipeline`."""
        return image

    def finish(self, image: np.ndarray) -> Tensor:
        """See `ImagePipeline`."""
        planes = resize(image, self.resized(*image.shape[:2]), self.description.interpolation)
        return self.normalize(center_crop(planes, self.size, self.description.mean))

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Size of an image before the crop, as timm and torchvision round it."""
        mode, (target_height, target_width) = self.description.crop_mode, self.scaled
        if mode == "squash":
            return target_height, target_width
        if mode == "center" and target_height == target_width:
            if height <= width:
                return target_height, int(target_height * width / height)
            return int(target_width * height / width), target_width
        ratios = height / target_height, width / target_width
        ratio = max(ratios) if mode == "border" else min(ratios)
        return round(height / ratio), round(width / ratio)


class OpenCVTrain(ImagePipeline):
    """Training augmentation on arrays.

    Args:
        description: What to do.
    """

    def __init__(self, description: ImageNetTrain) -> None:
        from visionattn.data.pipeline import build_transform

        self.description = description
        self.size = size = _pair(description.size)
        self.policy = None
        if description.auto_augment:
            policy, mean = description.auto_augment, description.mean
            self.policy = build_policy(policy, size, mean, description.interpolation)
        self.jitter = ColorJitter(description.jitter) if description.jitters else None
        extra = [build_transform(entry) for entry in description.extra]
        self.extra = A.Compose(extra) if extra else None
        self.normalize = Normalize(description.mean, description.std)
        self.erase = None
        if description.erase_prob > 0:
            self.erase = RandomErasing(
                description.erase_prob, mode=description.erase_mode, max_count=description.erase_count, device="cpu"
            )

    def decode(self, content: bytes, source: str) -> Tensor:
        """Random part of a file's image, resized; a large part is decoded at a half, a quarter or an eighth."""
        header = open_image(content, source)
        top, left, height, width = self._draw_part(header)
        shrinks = min(height / self.size[0], width / self.size[1])
        reduction = max((k for k in REDUCTIONS if k <= shrinks), default=1)
        image = decode_image(content, source, upright=False, header=header, reduction=reduction)
        if reduction > 1:
            rows, columns = image.shape[0] / header.height, image.shape[1] / header.width
            bottom, right = round((top + height) * rows), round((left + width) * columns)
            top, left = round(top * rows), round(left * columns)
            height, width = bottom - top, right - left
        return self._resize(image[top : top + height, left : left + width])

    def prepare(self, image: np.ndarray) -> Tensor:
        """Random part of an image, resized."""
        top, left, height, width = self._draw_part(Image.fromarray(image))
        return self._resize(image[top : top + height, left : left + width])

    def finish(self, image: Tensor) -> Tensor:
        """See `ImagePipeline`."""
        # Drawn by PyTorch, as torchvision's flips are.
        for axis, chance in ((2, self.description.hflip), (1, self.description.vflip)):
            if chance > 0 and torch.rand(1) < chance:
                image = image.flip(axis)
        if any(step is not None for step in (self.policy, self.jitter, self.extra)):
            image = torch.from_numpy(np.stack(cv2.split(self._recolor(cv2.merge(list(image.numpy()))))))
        tensor = self.normalize(image)
        return tensor if self.erase is None else self.erase(tensor)

    def _recolor(self, image: np.ndarray) -> np.ndarray:
        """An array `(H, W, 3)` after the policy, the jitter and albumentations' transforms."""
        if self.policy is not None:
            image = self.policy(image)
        if self.jitter is not None:
            image = self.jitter(image)
        if self.extra is not None:
            self.extra.set_random_seed(random.getrandbits(32))
            image = self.extra(image=image)["image"]
        return image

    def _draw_part(self, image: Image.Image) -> tuple[int, int, int, int]:
        """Top, left, height and width of a random part, as timm draws it."""
        scale, ratio = self.description.scale, self.description.ratio
        return RandomResizedCropAndInterpolation.get_params(image, scale, ratio)

    def _resize(self, part: np.ndarray) -> Tensor:
        how = self.description.interpolation
        return resize(part, self.size, random.choice(ANTIALIASED) if how == "random" else how)


class Normalize:
    """Images `(3, H, W)` uint8, RGB, to float32, less the mean, by the deviation.

    Args:
        mean: One a channel, 0 to 1.
        std: One a channel, 0 to 1.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
        self.scale = scale.float()[:, None, None]
        self.shift = (-torch.tensor(mean, dtype=torch.float64) * 255 * scale).float()[:, None, None]

    def __call__(self, image: Tensor) -> Tensor:
        """The tensor."""
        return image.to(torch.float32, memory_format=torch.contiguous_format).mul_(self.scale).add_(self.shift)


def resize(image: np.ndarray, size: tuple[int, int], interpolation: str = "bicubic") -> Tensor:
    """Image at another size, antialiased as Pillow does it, `(3, *size)` uint8.

    OpenCV's filters are not: its bicubic kernel is another (a = -0.75 instead of -0.5) and takes four pixels a side
    however much the image shrinks.

    Args:
        image: `(H, W, 3)` uint8.
        size: Height and width in pixels.
        interpolation: "bilinear", "bicubic", "nearest", "box", "hamming" or "lanczos".
    """
    if interpolation not in ANTIALIASED and image.shape[:2] != tuple(size):
        image = np.asarray(Image.fromarray(image).resize(size[::-1], str_to_pil_interp(interpolation)))
    planes = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    if planes.shape[1:] == tuple(size):
        return planes.contiguous()
    return F.interpolate(planes[None], size, mode=interpolation, antialias=True, align_corners=False)[0]


def center_crop(image: Tensor, size: tuple[int, int], mean: Sequence[float]) -> Tensor:
    """Centre of an image `(3, H, W)` uint8, filled up with the colour `mean`, 0 to 1, where it is too small."""
    over = [max(wanted - side, 0) for wanted, side in zip(size, image.shape[1:], strict=True)]
    if any(over):
        filled = torch.tensor([round(255 * value) for value in mean], dtype=torch.uint8)[:, None, None]
        filled = filled.repeat(1, *(side + more for side, more in zip(image.shape[1:], over, strict=True)))
        top, left = over[0] // 2, over[1] // 2
        filled[:, top : top + image.shape[1], left : left + image.shape[2]] = image
        image = filled
    top, left = (round((side - wanted) / 2) for wanted, side in zip(size, image.shape[1:], strict=True))
    return image[:, top : top + size[0], left : left + size[1]]


def build_description(entry: Mapping[str, Any]) -> ImagePipeline:
    """Pipeline of `dict(type="ImageNetTrain" or "ImageNetEval", …)`.

    Raises:
        ValueError: An argument is unknown or its value not allowed.
    """
    arguments = dict(entry)
    kind = DESCRIPTIONS[arguments.pop("type")]
    names = [field.name for field in dataclasses.fields(kind)]
    for name in arguments:
        _check_in(f"{kind.__name__}: argument", name, names)
    return kind(**arguments).build()


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _check_common(description: ImageNetEval | ImageNetTrain, filters: Sequence[str]) -> None:
    size = description.size
    sides = (size,) if isinstance(size, int) else tuple(size)
    if len(sides) not in (1, 2) or min(sides) < 1 or (len(sides) == 1 and not isinstance(size, int)):
        raise ValueError(f"size={size!r} must be a side in pixels, or height and width")
    _check_in("interpolation", description.interpolation, filters)
    _check_in("backend", description.backend, BACKENDS)
    for name in ("mean", "std"):
        value = getattr(description, name)
        if len(value) != 3 or (name == "std" and min(value) <= 0):
            raise ValueError(f"{name}={tuple(value)!r} must be three numbers{', above 0' if name == 'std' else ''}")


def _check_in(argument: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{argument}={value!r} must be one of {', '.join(map(repr, allowed))}")
