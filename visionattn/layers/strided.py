# SPDX-License-Identifier: Apache-2.0
"""Attention in place of the 3x3 convolution of a residual block: maps `(B, C, H, W)`, with a stride."""

import math
from abc import abstractmethod

from timm.layers import make_divisible
from torch import Tensor, nn

from visionattn.kernels import halo_attention, relative_attention

from .halo import check_halo
from .init import init_table
from .relative import RelativeVectors


class StridedAttention(nn.Module):
    """What both share: widths of the heads, the layout, average pooling for a stride of 2.

    There is no projection of the output: the block's next convolution is one.

    Args:
        dim: Channels of the input.
        dim_out: Channels of the output; None for `dim`.
        num_heads: Attention heads; a divisor of `dim_out`.
        head_dim: Channels of a query and a key; None for `qk_ratio` times the output's channels, rounded to a multiple
            of 8, over the heads.
        qk_ratio: Channels of queries and keys over those of the output.
        stride: 1, or 2 to halve the map, sides rounded up.
        scale_rel: Whether the scale of the logits holds for the relative logits too.

    Raises:
        ValueError: If `num_heads` or `stride` does not fit, or queries are left without channels.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None,
        num_heads: int,
        head_dim: int | None,
        qk_ratio: float,
        stride: int,
        scale_rel: bool,
    ) -> None:
        super().__init__()
        dim_out = dim if dim_out is None else dim_out
        if num_heads < 1 or dim_out % num_heads:
            raise ValueError(f"num_heads={num_heads} must be a positive divisor of dim_out={dim_out}")
        if stride not in (1, 2):
            raise ValueError(f"stride={stride} must be 1 or 2")
        self.num_heads = num_heads
        self.v_dim = dim_out // num_heads
        self.head_dim = make_divisible(dim_out * qk_ratio, 8) // num_heads if head_dim is None else head_dim
        if self.head_dim < 1:
            raise ValueError(f"head_dim={self.head_dim} must be at least 1; {num_heads} heads are too many, or give it")
        self.scale = self.head_dim**-0.5
        self.scale_rel = scale_rel
        self.pool: nn.Module = nn.Identity()

    def add_pool(self) -> None:
        """Halves the map after the attention; the last row or column of an odd one is averaged over what there is."""
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)

    def init_projections(self, *projections: nn.Conv2d) -> None:
        """Truncated normal weights of variance 1 / fan-in, and zero biases."""
        for conv in projections:
            init_table(conv.weight, conv.in_channels**-0.5)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def heads_last(self, x: Tensor) -> Tensor:
        """`(B, H, W, heads, D)` of `(B, heads * D, H, W)`, a view."""
        return x.unflatten(1, (self.num_heads, -1)).permute(0, 3, 4, 1, 2)

    @abstractmethod
    def project_in(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `(B, H, W, heads, D)` of `(B, C, H, W)`."""

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of `(B, H, W, heads, D)`, of the shape of the queries but for the last axis."""

    def project_out(self, x: Tensor) -> Tensor:
        """Joins the heads of `(B, H, W, heads, D)` to a map `(B, C, H, W)`, and pools."""
        # Contiguous: a batch norm follows, and strides decide what its backward does.
        return self.pool(x.flatten(3).permute(0, 3, 1, 2).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)`, any H, W >= 1, to `(B, dim_out, H, W)`, or to half of its sides, rounded up."""
        return self.project_out(self.attend(*self.project_in(x)))

    def without_attention(self, x: Tensor) -> Tensor:
        """A map of the output's shape, by all that is computed but for the attention."""
        q, _, _ = self.project_in(x)
        return self.project_out(q.new_zeros(*q.shape[:-1], self.v_dim))


class StridedHaloAttention(StridedAttention):
    """Attention of blocks of pixels to themselves and a halo around them.

    Keys outside the map are zeros that take part in the softmax, also where the last blocks are not filled.

    Args:
        dim: Channels of the input.
        dim_out: Channels of the output; None for `dim`.
        num_heads: Attention heads; a divisor of `dim_out`.
        block_size: Side of the blocks.
        halo_size: Pixels added on each side.
        stride: 1, or 2 to halve the map: by queries of every other pixel where blocks can be halved, else by average
            pooling of the output.
        head_dim: Channels of a query and a key; None for `qk_ratio` times the output's channels, rounded to a multiple
            of 8, over the heads.
        qk_ratio: Channels of queries and keys over those of the output.
        qkv_bias: Whether projections have a bias.
        avg_down: Pool in any case.
        scale_rel: Whether the scale of the logits holds for the relative logits too.

    Raises:
        ValueError: If an argument is out of range.

    Paper: Scaling Local Self-Attention for Parameter Efficient Visual Backbones, arXiv 2103.12731.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        num_heads: int = 8,
        block_size: int = 8,
        halo_size: int = 3,
        stride: int = 1,
        head_dim: int | None = None,
        qk_ratio: float = 1.0,
        qkv_bias: bool = False,
        avg_down: bool = False,
        scale_rel: bool = False,
    ) -> None:
        super().__init__(dim, dim_out, num_heads, head_dim, qk_ratio, stride, scale_rel)
        check_halo(block_size, halo_size)
        self.block_size = block_size
        self.halo_size = halo_size
        pools = stride == 2 and (avg_down or block_size % 2 == 1)
        self.query_stride = 1 if pools else stride
        if pools:
            self.add_pool()
        self.q = nn.Conv2d(dim, num_heads * self.head_dim, 1, self.query_stride, bias=qkv_bias)
        self.kv = nn.Conv2d(dim, num_heads * (self.head_dim + self.v_dim), 1, bias=qkv_bias)
        window = block_size + 2 * halo_size
        self.pos_embed = RelativeVectors((window, window), self.head_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weights as published."""
        self.init_projections(self.q, self.kv)
        self.pos_embed.reset_parameters()

    def project_in(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `(B, H, W, heads, D)` of `(B, C, H, W)`; key and value of a head are neighbours."""
        k, v = self.heads_last(self.kv(x)).split([self.head_dim, self.v_dim], -1)
        return self.heads_last(self.q(x)), k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of `(B, H, W, heads, D)`, of the shape of the queries but for the last axis."""
        return halo_attention(  # type: ignore[return-value]
            q,
            k,
            v,
            self.block_size,
            self.halo_size,
            query_stride=self.query_stride,
            rel_tables=self.pos_embed(*self.pos_embed.extent),
            scale_rel=self.scale_rel,
            scale=self.scale,
        )

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of attention products and relative logits on one map, softmax left out."""
        block, window = self.block_size, self.block_size + 2 * self.halo_size
        queries = math.prod(-(-side // block) * (block // self.query_stride) for side in (height, width))
        return queries * self.num_heads * (window**2 * (self.head_dim + self.v_dim) + 2 * window * self.head_dim)


class StridedBottleneckAttention(StridedAttention):
    """Attention of every pixel to every pixel of a map.

    Args:
        dim: Channels of the input.
        dim_out: Channels of the output; None for `dim`.
        num_heads: Attention heads; a divisor of `dim_out`.
        map_size: `(height, width)` of the input that the vectors of relative positions are made for; for another one
            they are resized bicubically.
        stride: 1, or 2 to halve the map by average pooling of the output.
        head_dim: Channels of a query and a key; None for `qk_ratio` times the output's channels, rounded to a multiple
            of 8, over the heads.
        qk_ratio: Channels of queries and keys over those of the output.
        qkv_bias: Whether the projection has a bias.
        scale_rel: Whether the scale of the logits holds for the relative logits too, as the paper has it.

    Raises:
        ValueError: If an argument is out of range.

    Paper: Bottleneck Transformers for Visual Recognition, arXiv 2101.11605.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        num_heads: int = 4,
        map_size: tuple[int, int] = (16, 16),
        stride: int = 1,
        head_dim: int | None = None,
        qk_ratio: float = 1.0,
        qkv_bias: bool = False,
        scale_rel: bool = False,
    ) -> None:
        super().__init__(dim, dim_out, num_heads, head_dim, qk_ratio, stride, scale_rel)
        if stride == 2:
            self.add_pool()
        self.widths = [num_heads * width for width in (self.head_dim, self.head_dim, self.v_dim)]
        self.qkv = nn.Conv2d(dim, sum(self.widths), 1, bias=qkv_bias)
        self.pos_embed = RelativeVectors(map_size, self.head_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weights as published."""
        self.init_projections(self.qkv)
        self.pos_embed.reset_parameters()

    def project_in(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `(B, H, W, heads, D)` of `(B, C, H, W)`."""
        q, k, v = (self.heads_last(part) for part in self.qkv(x).split(self.widths, 1))
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of `(B, H, W, heads, D)`, of the shape of the queries but for the last axis."""
        tables = self.pos_embed(*q.shape[1:3])
        return relative_attention(q, k, v, tables, scale=self.scale, scale_rel=self.scale_rel)

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of attention products and relative logits on one map, softmax left out."""
        pixels = height * width
        return pixels * self.num_heads * (pixels * (self.head_dim + self.v_dim) + (height + width) * self.head_dim)
