# SPDX-License-Identifier: Apache-2.0
"""Stems and downsamplers: where a map changes its resolution. All return `(B, H, W, C)`."""

import torch
from torch import Tensor, nn

from .attention import resize_table
from .init import init_table
from .padding import pad_to_multiple


class ConvStem(nn.Module):
    """Image `(B, C, H, W)` to a map at stride 4: two overlapping 3x3 convolutions, then LayerNorm.

    Args:
        in_chans: Channels of the image.
        dim: Channels of the map, even.

    Paper: Neighborhood Attention Transformer, arXiv 2204.07143.
    """

    first_conv = "proj.0"
    stride = 4

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        # No activation in between: the reference has none.
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, dim // 2, 3, stride=2, padding=1),
            nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1),
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Embeds an image of any size; odd sides round up."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class PatchStem(nn.Module):
    """Image `(B, C, H, W)` to a map of non-overlapping patches, zero-padded to whole patches at the bottom and right.

    Args:
        in_chans: Channels of the image.
        dim: Channels of the map.
        patch_size: Side of a patch, the stride of the map.
        norm: Whether a LayerNorm follows.
    """

    first_conv = "proj"

    def __init__(self, in_chans: int, dim: int, patch_size: int = 4, norm: bool = True) -> None:
        super().__init__()
        if patch_size < 1:
            raise ValueError(f"patch_size={patch_size} must be at least 1")
        self.stride = patch_size
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Embeds an image of any size."""
        x = self.proj(pad_to_multiple(x, self.stride, channels_last=False))
        return self.norm(x.permute(0, 2, 3, 1))


class ConvDownsample(nn.Module):
    """Halves a map and changes its channels by an overlapping 3x3 convolution, then LayerNorm.

    Args:
        dim: Channels in.
        out_dim: Channels out.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Halves `(B, H, W, C)`; odd sides round up."""
        return self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Halves a map by joining 2x2 pixels: LayerNorm of the joined channels, then a linear map without bias.

    Args:
        dim: Channels in.
        out_dim: Channels out.

    Paper: Swin Transformer, arXiv 2103.14030.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Halves `(B, H, W, C)`; odd sides are zero-padded first."""
        x = pad_to_multiple(x, 2)
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
        # The parity of the row varies fastest among the four neighbours.
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x))


class PositionEmbedding(nn.Module):
    """Adds a learned vector per position; on a map of another size the table is resized bicubically.

    Args:
        dim: Channels of the map.
        map_size: `(height, width)` that the table is made for.
    """

    def __init__(self, dim: int, map_size: tuple[int, int]) -> None:
        super().__init__()
        self.map_size = map_size
        self.table = nn.Parameter(torch.empty(dim, *map_size))
        init_table(self.table)

    def forward(self, x: Tensor) -> Tensor:
        """Adds to `(B, H, W, C)`."""
        size = (x.shape[1], x.shape[2])
        table = self.table if size == self.map_size else resize_table(self.table, size)
        return x + table.permute(1, 2, 0)


STEMS: dict[str, type[nn.Module]] = {"conv": ConvStem, "patch": PatchStem}
DOWNSAMPLERS: dict[str, type[nn.Module]] = {"conv": ConvDownsample, "merge": PatchMerging}
