# SPDX-License-Identifier: Apache-2.0
"""YOLOv12's area attention: attention within equal pieces of the map, by convolutions and batch norms."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.kernels.pattern import ceil_div, is_symbolic

from .batch_norm import batch_norm
from .checks import check_heads


class ConvNorm(nn.Module):
    """Convolution that keeps the map's size, and batch norm; maps `(B, C, H, W)`."""

    def __init__(self, inputs: int, channels: int, kernel_size: int = 1, groups: int = 1, eps: float = 1e-5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, C, H, W)` to the same size."""
        return batch_norm(self.bn, self.conv(x))


class AreaAttention(nn.Module):
    """Every pixel attends to those of its piece of the map; a convolution of the values over all pieces tells places.

    Pieces follow one another row by row, and are strips where they hold whole rows. Where the pixels can't be shared
    out equally, the last pieces are shorter or empty. With a fixed number of pieces cost stays quadratic.

    Args:
        dim: Channels of the map; a multiple of `num_heads`.
        num_heads: Attention heads.
        num_areas: Number of pieces.
        proj_drop: Dropout after the output projection.
        norm_eps: Added to the variance by the batch norms.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, or `num_areas` is not positive.

    Paper: YOLOv12: Attention-Centric Real-Time Object Detectors, arXiv 2502.12524.
    """

    cost = "O(N²)"

    def __init__(
        self, dim: int, num_heads: int, num_areas: int = 4, proj_drop: float = 0.0, norm_eps: float = 1e-3
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        if num_areas < 1:
            raise ValueError(f"num_areas={num_areas} must be at least 1")
        self.num_heads, self.num_areas = num_heads, num_areas
        self.qk = ConvNorm(dim, 2 * dim, eps=norm_eps)
        self.v = ConvNorm(dim, dim, eps=norm_eps)
        self.pe = ConvNorm(dim, dim, 5, groups=dim, eps=norm_eps)
        self.proj = ConvNorm(dim, dim, eps=norm_eps)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        x = x.permute(0, 3, 1, 2)
        values = self.v(x)
        q, k = self.qk(x).chunk(2, 1)
        out = self._attend(*(t.flatten(2).transpose(1, 2) for t in (q, k, values)))
        out = out.transpose(1, 2).unflatten(2, x.shape[2:]) + self.pe(values)
        return self.proj_drop(self.proj(out)).permute(0, 2, 3, 1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention within the pieces of tokens `(B, N, C)`."""
        count = q.shape[1]
        length = ceil_div(count, self.num_areas)
        spare = self.num_areas * length - count
        mask = self._mask(q, length) if is_symbolic(count) or spare > 0 else None
        q, k, v = (self._pieces(t, length, spare) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out = out.unflatten(1, (self.num_areas, self.num_heads)).transpose(2, 3).flatten(3).flatten(1, 2)
        if is_symbolic(count):
            return out.index_select(1, torch.arange(count, device=out.device))
        return out[:, :count]

    def _pieces(self, x: Tensor, length: int, spare: int) -> Tensor:
        """Tokens `(B, N, C)` as `(B, areas * heads, length, D)`."""
        if is_symbolic(spare) or spare > 0:
            x = F.pad(x, (0, 0, 0, spare))
        x = x.unflatten(1, (self.num_areas, length)).unflatten(3, (self.num_heads, -1))
        return x.transpose(2, 3).flatten(1, 2)

    def _mask(self, x: Tensor, length: int) -> Tensor:
        """Summands `(areas * heads, 1, length)` of the logits that hide the tokens which fill up the pieces."""
        place = torch.arange(self.num_areas, device=x.device)[:, None] * length + torch.arange(length, device=x.device)
        # Finite, since a piece may hold nothing else.
        hidden = (place >= x.shape[1]).to(x.dtype) * -30000.0
        return hidden.repeat_interleave(self.num_heads, 0)[:, None]
