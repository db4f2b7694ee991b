# SPDX-License-Identifier: Apache-2.0
"""Norms of maps `(B, H, W, C)` by name: `(dim, eps)` makes one."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .batch_norm import batch_norm
from .names import pick


class MapBatchNorm(nn.Module):
    """Batch norm of the channels of a map `(B, H, W, C)`.

    Args:
        dim: Channels of the map.
        eps: Added to the variance.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        # Held, not inherited: conversion to synchronized norms replaces what it finds by one of maps (B, C, H, W).
        self.bn = nn.BatchNorm2d(dim, eps)

    def forward(self, x: Tensor) -> Tensor:
        """Norms `(B, H, W, C)`."""
        return batch_norm(self.bn, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class LengthNorm(nn.Module):
    """Channels less their mean, divided by their length, which counts as `eps` where it is less; no bias.

    Results are `dim ** 0.5` times smaller than those of LayerNorm.

    Args:
        dim: Channels of the map.
        eps: Least length.

    Paper: ParCNetV2: Oversized Kernel with Enhanced Attention, arXiv 2211.07157.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Norms `(..., C)`."""
        x = x.contiguous()  # as LayerNorm's result is: what follows reads channels side by side
        wide = x if x.dtype == torch.float64 else x.float()  # squares of half precision overflow
        wide = wide - wide.mean(-1, keepdim=True)
        return F.normalize(wide, dim=-1, eps=self.eps).to(x.dtype) * self.weight


class RMSNorm(nn.Module):
    """Channels divided by their root mean square; no bias.

    Args:
        dim: Channels of the map.
        eps: Added to the mean square.

    Paper: Root Mean Square Layer Normalization, arXiv 1910.07467.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Norms `(..., C)`."""
        wide = x if x.dtype == torch.float64 else x.float()  # squares of half precision overflow
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return wide.to(x.dtype) * self.weight


NORMS: dict[str, type[nn.Module]] = {
    "layer": nn.LayerNorm,
    "batch": MapBatchNorm,
    "length": LengthNorm,
    "rms": RMSNorm,
}


def create_norm(name: str, dim: int, eps: float = 1e-5) -> nn.Module:
    """Norm `name` of `dim` channels.

    Raises:
        ValueError: If no norm has that name.
    """
    return pick("norm_layer", name, NORMS)(dim, eps)
