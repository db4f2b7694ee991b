# SPDX-License-Identifier: Apache-2.0
"""Norms of maps `(B, H, W, C)` by name: `(dim, eps)` makes one."""

from torch import Tensor, nn

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


NORMS: dict[str, type[nn.Module]] = {"layer": nn.LayerNorm, "batch": MapBatchNorm}


def create_norm(name: str, dim: int, eps: float = 1e-5) -> nn.Module:
    """Norm `name` of `dim` channels.

    Raises:
        ValueError: If no norm has that name.
    """
    return pick("norm_layer", name, NORMS)(dim, eps)
