# SPDX-License-Identifier: Apache-2.0
"""Global attention to a map of lower resolution."""

import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_heads
from .padding import pad_to_patch
from .pooling import average_cells


class SpatialReductionAttention(nn.Module):
    """Every pixel attends to every patch of `reduction` x `reduction` pixels, summarised by a strided convolution.

    Rows and columns that fill no patch are dropped from keys and values; a map smaller than a patch is zero-padded.
    Graphs traced with symbolic sizes need maps of at least 2x2 patches.

    Args:
        dim: Channels of the map; a multiple of `num_heads`.
        num_heads: Attention heads.
        reduction: Side of a patch; 1 attends to the pixels themselves.
        qkv_bias: Whether the q and kv projections have a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, or `reduction` is not positive.

    Paper: Pyramid Vision Transformer, arXiv 2102.12122.
    """

    cost = "O(N²)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        reduction: int = 1,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        if reduction < 1:
            raise ValueError(f"reduction={reduction} must be at least 1")
        self.dim = dim
        self.num_heads = num_heads
        self.reduction = reduction
        self.scale = (dim // num_heads) ** -0.5 if qk_scale is None else qk_scale
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.sr: nn.Module = nn.Conv2d(dim, dim, reduction, stride=reduction) if reduction > 1 else nn.Identity()
        self.norm = nn.LayerNorm(dim) if reduction > 1 else nn.Identity()
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def reduce(self, x: Tensor) -> Tensor:
        """Tokens `(B, n, C)` that keys and values are made from, those of the rows of the reduced map in turn."""
        if self.reduction == 1:
            return x.flatten(1, 2)
        x = pad_to_patch(x, self.reduction)
        # Flat from here on: strides of four axes would tie a trace to a batch of more than one image.
        return self.norm(self.sr(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1, 2))

    def project_in(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries `(B, H, W, heads, D)`, keys and values `(B, n, heads, D)`."""
        q = self.q(x).unflatten(-1, (self.num_heads, -1))
        k, v = self.kv(self.reduce(x)).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        return q, k, v

    def project_out(self, x: Tensor) -> Tensor:
        """Joins the heads of `(B, H, W, heads, D)` and projects them."""
        return self.proj_drop(self.proj(x.flatten(3)))

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        q, k, v = self.project_in(x)
        q, k, v = (t.transpose(1, 2) for t in (q.flatten(1, 2), k, v))
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.project_out(out.transpose(1, 2).unflatten(1, x.shape[1:3]))

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of the two attention products on one map, softmax left out."""
        keys = max(height // self.reduction, 1) * max(width // self.reduction, 1)
        return 2 * height * width * keys * self.dim


class PooledAttention(SpatialReductionAttention):
    """Every pixel attends to a summary of `pool_size` x `pool_size` averages, so that cost is linear in the pixels.

    Args:
        dim: Channels of the map; a multiple of `num_heads`.
        num_heads: Attention heads.
        pool_size: Rows and columns of the summary.
        qkv_bias: Whether the q and kv projections have a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, or `pool_size` is not positive.

    Paper: PVT v2, arXiv 2106.13797 (linear spatial reduction attention).
    """

    cost = "O(N)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        pool_size: int = 7,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
    ) -> None:
        if pool_size < 1:
            raise ValueError(f"pool_size={pool_size} must be at least 1")
        super().__init__(dim, num_heads, 1, qkv_bias, qk_scale, proj_drop)
        self.pool_size = pool_size
        self.sr = nn.Conv2d(dim, dim, 1)
        self.norm = nn.LayerNorm(dim)
        self.act = nn.GELU()

    def reduce(self, x: Tensor) -> Tensor:
        """Tokens `(B, n, C)` that keys and values are made from, those of the rows of the averages in turn."""
        pooled = average_cells(x, (self.pool_size, self.pool_size)).permute(0, 3, 1, 2)
        return self.act(self.norm(self.sr(pooled).flatten(2).transpose(1, 2)))

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of the two attention products on one map, softmax left out."""
        return 2 * height * width * self.pool_size**2 * self.dim
