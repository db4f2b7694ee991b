# SPDX-License-Identifier: Apache-2.0
"""Rotary positions of maps."""

import torch
from torch import Tensor, nn


class RotaryPosition(nn.Module):
    """Turns pairs of channels by angles of the pixel's row, in the first half of the channels, or column.

    Angles are those of a map of `length` rows and columns; on other maps positions lie closer or further apart.

    Args:
        dim: Channels of the map, a multiple of 4.
        length: Rows and columns that the angles are made for.

    Raises:
        ValueError: If 4 does not divide `dim`.

    Paper: RoFormer: Enhanced Transformer with Rotary Position Embedding, arXiv 2104.09864.
    """

    def __init__(self, dim: int, length: int = 14) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"dim={dim} must be a multiple of 4")
        self.dim, self.length = dim, length

    def forward(self, x: Tensor) -> Tensor:
        """Turns `(B, H, W, C)`."""
        height, width = x.shape[1:3]
        rows, columns = (self._angles(n, x.device) for n in (height, width))
        sides = (height, width, self.dim // 2)
        angles = torch.cat([rows[:, None].expand(sides), columns.expand(sides)], -1)
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([-second, first], -1).flatten(-2)
        return x * angles.cos().to(x.dtype) + turned * angles.sin().to(x.dtype)

    def _angles(self, count: int, device: torch.device) -> Tensor:
        """Angles `(count, C / 2)`, in float32 as the references have them."""
        half = self.dim // 2
        exponents = torch.arange(0, half, 2, device=device, dtype=torch.float32) / half
        places = torch.arange(count, device=device, dtype=torch.float32) / count * self.length
        return (places[:, None] * (1 / 10000**exponents)).repeat_interleave(2, -1)
