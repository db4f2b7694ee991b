# SPDX-License-Identifier: Apache-2.0
"""Object-contextual representations on HRNet's joined maps, and attention between scales; plain PyTorch.

Papers: Object-Contextual Representations for Semantic Segmentation, arXiv 1909.11065; Hierarchical Multi-Scale
Attention for Semantic Segmentation, arXiv 2005.10821.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Map `(B, C, H, W)` at another `(height, width)`, bilinear, corners not aligned."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int = 1, bias: bool = False) -> nn.Sequential:
    """Convolution that keeps the map's size, batch norm, ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


class ObjectContext(nn.Module):
    """Attention of pixels to one vector for each class.

    Args:
        channels: Channels of pixels and of vectors.
        key_channels: Channels of queries, keys and values.
    """

    def __init__(self, channels: int, key_channels: int) -> None:
        super().__init__()
        self.scale = key_channels**-0.5

        def projection() -> nn.Sequential:
            return nn.Sequential(conv_norm_relu(channels, key_channels), conv_norm_relu(key_channels, key_channels))

        self.query, self.key = projection(), projection()
        self.value = conv_norm_relu(channels, key_channels)
        self.up = conv_norm_relu(key_channels, channels)

    def forward(self, x: Tensor, regions: Tensor) -> Tensor:
        """Pixels `(B, C, H, W)` and vectors `(B, C, classes, 1)` to contexts `(B, C, H, W)`."""
        query = self.query(x).flatten(2).transpose(1, 2)
        key, value = self.key(regions).flatten(2), self.value(regions).flatten(2)
        attention = (self.scale * query @ key).softmax(-1)
        context = (attention @ value.transpose(1, 2)).transpose(1, 2)
        return self.up(context.reshape(*context.shape[:2], *x.shape[2:]))


class OCR(nn.Module):
    """Logits from pixels that know the classes of the image.

    Args:
        in_channels: Channels of the map.
        num_classes: Number of classes.
        channels: Channels inside.
        key_channels: Channels of queries, keys and values.
        dropout: Share of channels dropped before the classifier.
    """

    def __init__(
        self, in_channels: int, num_classes: int, channels: int = 512, key_channels: int = 256, dropout: float = 0.05
    ) -> None:
        super().__init__()
        self.reduce = conv_norm_relu(in_channels, channels, 3, bias=True)
        self.auxiliary = nn.Sequential(
            conv_norm_relu(in_channels, in_channels, bias=True), nn.Conv2d(in_channels, num_classes, 1)
        )
        self.context = ObjectContext(channels, key_channels)
        self.fuse = nn.Sequential(conv_norm_relu(2 * channels, channels), nn.Dropout2d(dropout))
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map `(B, in_channels, H, W)` to logits and auxiliary logits `(B, classes, H, W)`, and what made the first.

        The last are features `(B, channels, H, W)`.
        """
        auxiliary, pixels = self.auxiliary(x), self.reduce(x)
        weights = auxiliary.flatten(2).softmax(-1)
        regions = pixels.flatten(2) @ weights.transpose(1, 2)
        features = self.fuse(torch.cat([self.context(pixels, regions.unsqueeze(-1)), pixels], 1))
        return self.classifier(features), auxiliary, features


class ScaleAttention(nn.Sequential):
    """Trust in the logits at one scale, a number in (0, 1) for each pixel.

    Args:
        in_channels: Channels of the features.
        channels: Channels inside.
    """

    def __init__(self, in_channels: int, channels: int = 256) -> None:
        last = nn.Conv2d(channels, 1, 1, bias=False)
        super().__init__(
            conv_norm_relu(in_channels, channels, 3), conv_norm_relu(channels, channels, 3), last, nn.Sigmoid()
        )


def fuse_scales(passes: Sequence[tuple[float, Tensor, Tensor]]) -> Tensor:
    """Logits of several scales as one, from the largest scale down.

    Args:
        passes: `(scale, logits (B, classes, h, w), attention (B, 1, h, w))` of each pass, at the size of its image.
            Each scale takes the place of larger ones where it is sure.

    Returns:
        Logits at the size of the smallest scale from 1 on, or of the largest where all are below 1.

    Raises:
        ValueError: If there is no pass.
    """
    if not passes:
        raise ValueError("passes is empty; at least one scale is needed")
    first, *rest = sorted(passes, key=lambda item: -item[0])
    fused = first[1]
    for scale, logits, attention in rest:
        if scale >= 1:
            fused = attention * logits + (1 - attention) * resize(fused, logits.shape[2:])
        else:
            size = fused.shape[2:]
            fused = resize(attention * logits, size) + (1 - resize(attention, size)) * fused
    return fused
