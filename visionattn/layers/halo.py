# SPDX-License-Identifier: Apache-2.0
"""Attention of blocks of pixels to themselves and a halo around them."""

from torch import Tensor

from visionattn.kernels import halo_attention

from .attention import RelativeAttention
from .relative import RelativeVectors


def check_halo(block_size: int, halo_size: int) -> None:
    """Raises ValueError unless there are blocks, and halos of no negative size."""
    if block_size < 1:
        raise ValueError(f"block_size={block_size} must be at least 1")
    if halo_size < 0:
        raise ValueError(f"halo_size={halo_size} must be at least 0")


class HaloAttention(RelativeAttention):
    """The pixels of a block attend to the block and `halo_size` pixels around it, the same for all of them.

    Queries meet a learned vector for the key's offset in rows and columns. Keys outside the map are zeros that take
    part in the softmax, also where the last blocks are not filled.

    Args:
        dim: Channels of the map.
        num_heads: Attention heads.
        block_size: Side of the blocks.
        halo_size: Pixels added on each side.
        qkv_bias: Whether the qkv projection has a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        scale_rel: Whether the factor holds for the relative logits too.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, or a size is out of range.

    Paper: Scaling Local Self-Attention for Parameter Efficient Visual Backbones, arXiv 2103.12731.
    """

    cost = "O(N)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        block_size: int = 8,
        halo_size: int = 3,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        scale_rel: bool = False,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, None, qkv_bias, qk_scale, proj_drop)
        check_halo(block_size, halo_size)
        self.block_size = block_size
        self.halo_size = halo_size
        self.scale_rel = scale_rel
        window = block_size + 2 * halo_size
        self.pos_embed = RelativeVectors((window, window), dim // num_heads)

    def no_weight_decay(self) -> set[str]:
        """Parameters that no recipe decays, besides vectors."""
        return {"pos_embed.height_rel", "pos_embed.width_rel"}

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        tables = self.pos_embed(*self.pos_embed.extent)
        out = halo_attention(
            *self.project_in(x),
            self.block_size,
            self.halo_size,
            rel_tables=tables,
            scale_rel=self.scale_rel,
            scale=self.scale,
        )
        return self.project_out(out)  # type: ignore[arg-type]

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of attention products and relative logits on one map, softmax left out."""
        block, window = self.block_size, self.block_size + 2 * self.halo_size
        padded = -(-height // block) * block * -(-width // block) * block
        return padded * (2 * window**2 + 2 * window) * self.dim
