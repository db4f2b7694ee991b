# SPDX-License-Identifier: Apache-2.0
"""Attention whose logits know positions by learned vectors for offsets along rows and columns."""

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn

from visionattn.kernels import relative_attention
from visionattn.kernels.pattern import is_symbolic

from .attention import RelativeAttention, resize_table
from .init import init_table


class RelativeVectors(nn.Module):
    """One vector for each offset along the rows and along the columns of a map or window, shared by all heads.

    Args:
        extent: `(height, width)` of the map or window; tables are `(2 * height - 1, head_dim)` and
            `(2 * width - 1, head_dim)`, indexed by key position minus query position.
        head_dim: Channels of a query.

    Raises:
        ValueError: If an extent is not positive.
    """

    def __init__(self, extent: tuple[int, int], head_dim: int) -> None:
        super().__init__()
        if min(extent) < 1:
            raise ValueError(f"map or window size {extent} must be positive")
        self.extent = extent
        self.height_rel = nn.Parameter(torch.empty(2 * extent[0] - 1, head_dim))
        self.width_rel = nn.Parameter(torch.empty(2 * extent[1] - 1, head_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws both tables from a truncated normal of standard deviation `head_dim ** -0.5`."""
        for table in (self.height_rel, self.width_rel):
            init_table(table, table.shape[1] ** -0.5)

    def forward(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Tables of a map or window of that size, resized along their offsets if they were made for another."""
        tables = (self.height_rel, self.width_rel)
        if not is_symbolic(height, width) and (height, width) == self.extent:
            return tables
        rows, columns = (resize_vectors(t, 2 * side - 1) for t, side in zip(tables, (height, width), strict=True))
        return rows, columns


def resize_vectors(table: Tensor, count: int) -> Tensor:
    """Vectors `(n, D)` of the offsets along an axis, resized bicubically to `(count, D)`."""
    return resize_table(table.T[..., None], (count, 1))[..., 0].T


class BottleneckAttention(RelativeAttention):
    """Every pixel attends to every pixel; queries meet a learned vector for the key's offset in rows and columns.

    Args:
        dim: Channels of the map.
        num_heads: Attention heads.
        map_size: Side or `(height, width)` of the map that the vectors are made for; for another map they are
            resized bicubically.
        qkv_bias: Whether the qkv projection has a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        scale_rel: Whether the factor holds for the relative logits too, as the paper has it.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, or a size is not positive.

    Paper: Bottleneck Transformers for Visual Recognition, arXiv 2101.11605.
    """

    cost = "O(N²)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        map_size: int | tuple[int, int] = 14,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        scale_rel: bool = False,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, None, qkv_bias, qk_scale, proj_drop)
        self.scale_rel = scale_rel
        self.pos_embed = RelativeVectors(to_2tuple(map_size), dim // num_heads)

    def no_weight_decay(self) -> set[str]:
        """Parameters that no recipe decays, besides vectors."""
        return {"pos_embed.height_rel", "pos_embed.width_rel"}

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        tables = self.pos_embed(*x.shape[1:3])
        return self.project_out(
            relative_attention(*self.project_in(x), tables, scale=self.scale, scale_rel=self.scale_rel)
        )

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of attention products and relative logits on one map, softmax left out."""
        return height * width * (2 * height * width + height + width) * self.dim
