# SPDX-License-Identifier: Apache-2.0
"""Modules around a model for its export: feature maps as outputs, preprocessing inside, pooling of any size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from visionattn.layers.pooling import average_cells

LAYOUTS = ("NCHW", "NHWC")
DTYPES = {"uint8": torch.uint8, "float32": torch.float32}


@dataclass(frozen=True)
class Preprocessing:
    """Normalisation inside the graph, which then takes RGB pixels of 0 to 255; resizing stays outside.

    Args:
        mean: Mean of each channel, of pixels of 0 to 255, in the order of `channel_order`.
        std: Standard deviation of each channel, likewise.
        channel_order: "RGB" or "BGR", of what the model takes.
        layout: "NCHW" or "NHWC", of the images.
        dtype: "uint8" or "float32", of the images.

    Raises:
        ValueError: An argument is none of these.
    """

    mean: Sequence[float]
    std: Sequence[float]
    channel_order: Literal["RGB", "BGR"] = "RGB"
    layout: str = "NHWC"
    dtype: str = "uint8"

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout={self.layout!r} must be NCHW or NHWC")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} must be uint8 or float32")
        if self.channel_order not in ("RGB", "BGR"):
            raise ValueError(f"channel_order={self.channel_order!r} must be 'RGB' or 'BGR'")
        if len(self.mean) != len(self.std) or not all(value > 0 for value in self.std):
            raise ValueError(f"mean={list(self.mean)} and std={list(self.std)} must be as long, std positive")

    def random_images(self, batch: int, size: Sequence[int]) -> Tensor:
        """Noise of `(channels, height, width)`, in this layout and type."""
        images = torch.randint(0, 256, (batch, *size)).to(DTYPES[self.dtype])
        return images.permute(0, 2, 3, 1).contiguous() if self.layout == "NHWC" else images


class Preprocessed(nn.Module):
    """A model behind its preprocessing."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        self.preprocessing = preprocessing
        self.register_buffer("mean", torch.tensor(list(preprocessing.mean)).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(list(preprocessing.std)).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Any:
        """Outputs of the model for images of RGB pixels, 0 to 255."""
        if self.preprocessing.layout == "NHWC":
            images = images.permute(0, 3, 1, 2)
        images = images.float()
        if self.preprocessing.channel_order == "BGR":
            images = images.flip(1)
        return self.model((images - self.mean) / self.std)


class FeatureMaps(nn.Module):
    """The last `count` feature maps of a timm model, each `(B, C, H, W)`."""

    def __init__(self, model: nn.Module, count: int = 4) -> None:
        super().__init__()
        if not hasattr(model, "forward_intermediates"):
            raise ValueError(f"{type(model).__name__} has no forward_intermediates, so it gives no feature maps")
        self.model: Any = model
        self.count = min(count, len(getattr(model, "feature_info", ())) or count)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(f"features_{i}" for i in range(self.count))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps from fine to coarse."""
        return tuple(self.model.forward_intermediates(images, indices=self.count, intermediates_only=True))


class BinAverage(nn.Module):
    """`nn.AdaptiveAvgPool2d` as two products with matrices, which ONNX can compute for any size."""

    def __init__(self, bins: tuple[int, int]) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, C, *bins)`."""
        return average_cells(x.permute(0, 2, 3, 1), self.bins).permute(0, 3, 1, 2)


@contextlib.contextmanager
def portable_pooling(model: nn.Module) -> Iterator[None]:
    """The model with its adaptive pooling in a form that exports for any size."""
    swapped = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.AdaptiveAvgPool2d and _pair(child.output_size) not in (None, (1, 1)):
                swapped.append((parent, name, child))
                setattr(parent, name, BinAverage(_pair(child.output_size) or (1, 1)))
    try:
        yield
    finally:
        for parent, name, child in swapped:
            setattr(parent, name, child)


def _pair(size: Any) -> tuple[int, int] | None:
    """Both sides of an output size; None where one follows the input."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    return None if None in sides else (int(sides[0]), int(sides[1]))
