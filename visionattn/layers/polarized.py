# SPDX-License-Identifier: Apache-2.0
"""Polarized self-attention: a channel gate and a spatial gate that each fold one side of the map completely."""

from collections import OrderedDict

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn


class PolarizedChannelGate(nn.Module):
    """Factor of every channel: positions are pooled by a learned softmax, at half the channels.

    Args:
        channels: Channels of the map.
        bottleneck: Whether a bottleneck with a norm leads back to all channels, instead of one linear layer.
    """

    def __init__(self, channels: int, bottleneck: bool) -> None:
        super().__init__()
        half = channels // 2
        self.query = nn.Conv2d(channels, 1, 1, bias=False)
        self.value = nn.Conv2d(channels, half, 1, bias=False)
        if bottleneck:
            hidden = half // 4
            parts = {"conv1": nn.Conv2d(half, hidden, 1), "norm": LayerNorm2d(hidden, eps=1e-5), "act": nn.ReLU(),
                     "conv2": nn.Conv2d(hidden, channels, 1)}  # fmt: skip
            self.up: nn.Module = nn.Sequential(OrderedDict(parts))
        else:
            self.up = nn.Conv2d(half, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to factors `(B, C, 1, 1)` in (0, 1)."""
        weights = self.query(x).flatten(2).softmax(-1)
        pooled = self.value(x).flatten(2) @ weights.transpose(1, 2)
        return self.up(pooled.unsqueeze(3)).sigmoid()


class PolarizedSpatialGate(nn.Module):
    """Factor of every position: channels are pooled by a query made of their means, at half the channels.

    Args:
        channels: Channels of the map.
        softmax_values: Whether the softmax over positions is taken of each channel's values, not of the products.
    """

    def __init__(self, channels: int, softmax_values: bool) -> None:
        super().__init__()
        self.softmax_values = softmax_values
        self.query = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.value = nn.Conv2d(channels, channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to factors `(B, 1, H, W)` in (0, 1)."""
        query = self.query(x).mean((2, 3))[:, None]
        value = self.value(x).flatten(2)
        logits = query @ value.softmax(-1) if self.softmax_values else (query @ value).softmax(-1)
        return logits.sigmoid().unflatten(2, x.shape[2:])


class PolarizedAttention(nn.Module):
    """Gates channels and positions at once and adds the results up, or one after the other.

    This is what the published code computes: it takes both softmaxes over positions, while the paper takes that of
    the spatial gate over channels.

    Args:
        channels: Channels of the map.
        sequential: Gate the channels first and then, of the result, the positions (PSA_s), instead of both at once
            (PSA_p).

    Raises:
        ValueError: If there are too few channels to halve them, or to divide them by 8 where `sequential`.

    Paper: Polarized Self-Attention: Towards High-quality Pixel-wise Regression, arXiv 2107.00782.
    """

    def __init__(self, channels: int, sequential: bool = False) -> None:
        super().__init__()
        least = 8 if sequential else 2
        if channels < least:
            raise ValueError(f"channels={channels} must be at least {least}")
        self.sequential = sequential
        self.channel = PolarizedChannelGate(channels, bottleneck=sequential)
        self.spatial = PolarizedSpatialGate(channels, softmax_values=sequential)
        for conv in (self.channel.query, self.channel.value, self.spatial.query, self.spatial.value):
            nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to one of the same shape."""
        if self.sequential:
            x = x * self.channel(x)
            return x * self.spatial(x)
        return x * torch.add(self.spatial(x), self.channel(x))


class PolarizedMixer(nn.Module):
    """Polarized self-attention of a map `(B, H, W, C)`: its input times gates of channels and of positions.

    Args:
        dim: Channels of the map.
        num_heads: Not used; there, since all mixers take it.
        sequential: Gate the channels first and then, of the result, the positions, instead of both at once.
        proj_drop: Dropout of the result.

    Raises:
        ValueError: If there are too few channels to halve them, or to divide them by 8 where `sequential`.

    Paper: Polarized Self-Attention: Towards High-quality Pixel-wise Regression, arXiv 2107.00782.
    """

    cost = "O(N)"

    def __init__(self, dim: int, num_heads: int = 1, sequential: bool = False, proj_drop: float = 0.0) -> None:
        super().__init__()
        self.gate = PolarizedAttention(dim, sequential)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        return self.proj_drop(self.gate(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
