# SPDX-License-Identifier: Apache-2.0
"""ULSAM: one spatial attention map for each group of channels, at almost no cost."""

import torch.nn.functional as F
from torch import Tensor, nn

from .batch_norm import batch_norm


class ULSAM(nn.Module):
    """Adds to each group of channels itself times its attention map.

    A group's map comes from a scale and a bias a channel, a 3x3 maximum and one weight a channel, and sums to 1 over
    all positions, so the module starts near the identity.

    Args:
        channels: Channels of the map.
        groups: Groups of channels; a divisor of `channels`.

    Raises:
        ValueError: If `groups` does not divide `channels`.

    Paper: ULSAM: Ultra-Lightweight Subspace Attention Module for Compact Convolutional Neural Networks,
    arXiv 2006.15102.
    """

    def __init__(self, channels: int, groups: int = 4) -> None:
        super().__init__()
        if groups < 1 or channels % groups:
            raise ValueError(f"groups={groups} must be a positive divisor of channels={channels}")
        self.groups = groups
        self.scale = nn.Conv2d(channels, channels, 1, groups=channels)
        self.scale_bn = nn.BatchNorm2d(channels, momentum=0.9)
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.point = nn.Conv2d(channels, groups, 1, groups=groups)
        self.point_bn = nn.BatchNorm2d(groups, momentum=0.9)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to one of the same shape."""
        pooled = self.pool(F.relu(batch_norm(self.scale_bn, self.scale(x))))
        logits = F.relu(batch_norm(self.point_bn, self.point(pooled)))
        attention = logits.flatten(2).softmax(-1).view_as(logits)
        parts = x.unflatten(1, (self.groups, -1))
        return (attention[:, :, None] * parts + parts).flatten(1, 2)
