# SPDX-License-Identifier: Apache-2.0
"""Recursive gated convolution, and the filter in the Fourier domain that may take the convolution's place."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionattn.kernels.fourier import irfft2, rfft2

from .checks import check_odd
from .init import init_table

NORM_EPS = 1e-6


class GlobalLocalFilter(nn.Module):
    """Half of the channels convolved 3x3 depth-wise, half multiplied by a learned filter in the Fourier domain.

    The filter is made for one map; on another it is resized over the grid of frequencies as it stands.

    Args:
        dim: Channels of the map, even.
        map_size: `(height, width)` of the filter: of the half spectrum, so that a map of 14x14 needs (14, 8).

    Raises:
        ValueError: If `dim` is odd.

    Paper: HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions, arXiv 2207.14284.
    """

    def __init__(self, dim: int, map_size: Sequence[int]) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"dim={dim} must be even: half of the channels go through the filter")
        self.pre_norm = nn.LayerNorm(dim, NORM_EPS)
        self.conv = nn.Conv2d(dim // 2, dim // 2, 3, padding=1, groups=dim // 2, bias=False)
        self.filter = nn.Parameter(torch.empty(dim // 2, *map_size, 2))  # real and imaginary parts
        init_table(self.filter)
        self.post_norm = nn.LayerNorm(dim, NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Filters `(B, H, W, C)`, any H, W >= 1."""
        local, spread = self.pre_norm(x).permute(0, 3, 1, 2).chunk(2, 1)
        # The two halves take turns: what follows splits the channels again.
        both = torch.stack([self.conv(local), self._filtered(spread).to(local.dtype)], 2).flatten(1, 2)
        return self.post_norm(both.permute(0, 2, 3, 1))

    def _filtered(self, x: Tensor) -> Tensor:
        # Fourier transforms in half precision overflow, and need sides that are powers of 2.
        x = x if x.dtype == torch.float64 else x.float()
        real, imaginary = rfft2(x)
        wr, wi = resize_filter(self.filter.to(x.dtype), (real.shape[-2], real.shape[-1])).unbind(-1)
        return irfft2(real * wr - imaginary * wi, real * wi + imaginary * wr, (x.shape[-2], x.shape[-1]))


def resize_filter(table: Tensor, size: tuple[int, int]) -> Tensor:
    """Filter `(C, h, w, 2)` resized to `size` over the half spectrum as it stands, which moves its frequencies."""
    planes = F.interpolate(table.permute(0, 3, 1, 2), size, mode="bilinear", align_corners=True)
    return planes.permute(0, 2, 3, 1)


class RecursiveGatedConvolution(nn.Module):
    """Slices of a depth-wise convolution multiply features of growing width, one after the other.

    `order` products make interactions of that order among positions, at about the cost of one convolution.

    Args:
        dim: Channels of the map, divisible by 2 to the power of `order - 1`.
        num_heads: Not used; there, since all mixers take it.
        order: Number of products.
        kernel_size: Side of the depth-wise convolution, odd.
        filter_size: `(height, width)` of a `GlobalLocalFilter` in the convolution's place; None for the convolution.
        scale: Factor of the convolution's output.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If `dim` and `order` do not fit, or `kernel_size` is even.

    Paper: HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions, arXiv 2207.14284.
    """

    cost = "O(N)"

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        order: int = 3,
        kernel_size: int = 7,
        filter_size: Sequence[int] | None = None,
        scale: float = 1 / 3,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if order < 1 or dim % 2 ** (order - 1):
            raise ValueError(f"dim={dim} must be divisible by {2 ** max(order - 1, 0)}, as order={order} (at least 1)")
        check_odd("kernel_size", kernel_size)
        self.dims = [dim // 2**k for k in reversed(range(order))]
        self.scale = scale
        gates = sum(self.dims)
        self.proj_in = nn.Linear(dim, self.dims[0] + gates)
        self.conv = nn.Conv2d(gates, gates, kernel_size, padding=kernel_size // 2, groups=gates)
        self.filter = None
        if filter_size is not None:
            self.conv, self.filter = None, GlobalLocalFilter(gates, filter_size)
        self.widen = nn.ModuleList(nn.Linear(a, b) for a, b in zip(self.dims, self.dims[1:], strict=False))
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        x, gates = self.proj_in(x).split([self.dims[0], sum(self.dims)], -1)
        first, *others = (self._spread(gates) * self.scale).split(self.dims, -1)
        x = x * first
        for widen, gate in zip(self.widen, others, strict=True):
            x = widen(x) * gate
        return self.proj_drop(self.proj(x))

    def _spread(self, x: Tensor) -> Tensor:
        """Every channel mixed over the map."""
        if self.filter is not None:
            return self.filter(x)
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
