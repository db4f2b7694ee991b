# SPDX-License-Identifier: Apache-2.0
"""Token merging that learns where to read the pixels that it joins."""

import math

import torch
from torch import Tensor, nn

from visionattn.kernels.bilinear import bilinear

from .norm import MapBatchNorm
from .padding import pad_to_patch


class DeformableMerging(nn.Module):
    """Halves a map by a 2x2 deformable convolution, batch norm and GELU.

    A plain 2x2 convolution of the same map says how far from its place each of the four pixels is read, bilinearly,
    zero beyond the border. At the start all are read in their place.

    Args:
        dim: Channels in.
        out_dim: Channels out.

    Paper: Less is More: Pay Less Attention in Vision Transformers, arXiv 2105.14217; Deformable Convolutional Networks,
    arXiv 1703.06211.
    """

    rounds_up = False

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.offset = nn.Conv2d(dim, 8, 2, stride=2)  # for each of the pixels in turn: rows down, columns right
        self.reduction = nn.Linear(4 * dim, out_dim)  # reads the channels of the pixels, row by row, side by side
        self.norm = MapBatchNorm(out_dim)
        self.act = nn.GELU()
        self.init_weights()

    def init_weights(self) -> None:
        """Initial values, which those of other linear and convolution layers must not replace."""
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)
        bound = 1 / math.sqrt(self.reduction.in_features)
        for tensor in (self.reduction.weight, self.reduction.bias):
            nn.init.uniform_(tensor, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Halves `(B, H, W, C)`; odd sides round down, 1 stays 1."""
        x = pad_to_patch(x, 2)
        batch, height, width, channels = x.shape
        rows, columns = height // 2, width // 2
        wide = x if x.dtype == torch.float64 else x.float()  # half precision cannot tell places on large maps apart
        maps = wide.permute(0, 3, 1, 2)
        offsets = self.offset(x.permute(0, 3, 1, 2)).to(wide.dtype)
        taps = offsets.permute(0, 2, 3, 1).reshape(batch, rows, columns * 4, 2)
        read = bilinear(maps, self._places(taps, height, width), align_corners=False)
        read = read.permute(0, 2, 3, 1).reshape(batch, rows, columns, 4 * channels).to(x.dtype)
        return self.act(self.norm(self.reduction(read)))

    @staticmethod
    def _places(offsets: Tensor, height: int, width: int) -> Tensor:
        """Where the pixels `(B, rows, columns * 4, 2)` are read, (x, y), from -1 to 1, the borders of the map."""
        line = torch.arange(height // 2, device=offsets.device)
        column = torch.arange(width // 2 * 4, device=offsets.device)
        y = 2 * line[:, None] + column % 4 // 2 + offsets[..., 0]
        x = 2 * (column // 4) + column % 2 + offsets[..., 1]
        return torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
