# SPDX-License-Identifier: Apache-2.0
"""Global attention whose bias knows how far apart two pixels are, but not in which direction."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.kernels import neighborhood_attention

from .attention import RelativeAttention, output_of

# Distances up to FINE pixels have a bias each; larger ones share biases, the more the larger they are.
FINE, BUCKETS, FARTHEST = 20, 40, 160


def distance_buckets(height: int, width: int, device: torch.device) -> Tensor:
    """Bucket, from 0 to `BUCKETS`, of every offset in a map: `(2 * height - 1, 2 * width - 1)`, by key minus query."""
    rows, columns = (torch.arange(2 * side - 1, device=device) - (side - 1) for side in (height, width))
    distance = (rows[:, None] ** 2 + columns**2).float().sqrt().round()
    far = FINE + (BUCKETS - FINE) * (distance.clamp(min=1) / FINE).log() / math.log(FARTHEST / FINE)
    return torch.where(distance <= FINE, distance, far.round().clamp(max=BUCKETS)).long()


class DistanceAttention(RelativeAttention):
    """Every pixel attends to every pixel, with a bias for the distance between them in rounded pixels.

    The table fits maps of any size. Beyond 20 pixels its entries stand for ranges of distances that grow with them.

    Args:
        dim: Channels of the map.
        num_heads: Attention heads.
        qkv_bias: Whether the qkv projection has a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.
        attn_drop: Dropout of the attention weights, and of the projection if `proj_drop` is less. Training with it
            computes the weights of all pairs at once.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, or `attn_drop` is not in [0, 1).

    Paper: Rethinking and Improving Relative Position Encoding for Vision Transformer, arXiv 2107.14222.
    """

    cost = "O(N²)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, None, qkv_bias, qk_scale, max(proj_drop, attn_drop))
        if not 0 <= attn_drop < 1:
            raise ValueError(f"attn_drop={attn_drop} must be at least 0 and less than 1")
        self.attn_drop = attn_drop
        # In the reference's coding of signed offsets, of which distances are the later half.
        self.rpb = nn.Parameter(torch.zeros(num_heads, 2 * BUCKETS + 1))

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        height, width = x.shape[1:3]
        q, k, v = self.project_in(x)
        table: Tensor = self.rpb
        bias = table[:, BUCKETS + distance_buckets(height, width, x.device)]
        if self.training and self.attn_drop > 0:
            return self.project_out(self._with_dropout(q, k, v, bias))
        # A neighbourhood as large as the map is the map, for every query.
        out = neighborhood_attention(q, k, v, (height, width), scale=self.scale, bias=bias)
        return self.project_out(output_of(out))

    def _with_dropout(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Attention of `(B, H, W, heads, D)` whose weights are dropped."""
        height, width = q.shape[1:3]
        rows, columns = (torch.arange(side, device=q.device) for side in (height, width))
        down, right = (line[None] - line[:, None] + line.shape[0] - 1 for line in (rows, columns))
        pairs = bias[:, down[:, None, :, None], right[None, :, None, :]].flatten(1, 2).flatten(2)
        shape = v.shape
        q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))
        mask = pairs.to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=self.attn_drop, scale=self.scale)
        return out.transpose(1, 2).reshape(shape)

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of the two attention products on one map, bias and softmax left out."""
        return 2 * (height * width) ** 2 * self.dim
