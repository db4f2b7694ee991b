# SPDX-License-Identifier: Apache-2.0
"""Attention in a cross of stripes: half of the heads along columns, half along rows."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import RelativeAttention
from .padding import crop_to_size, pad_to_multiple


class CrossShapedAttention(RelativeAttention):
    """The first half of the heads attends inside vertical stripes of the map, the second inside horizontal ones.

    A depth-wise 3x3 convolution of the values, which sees zeros around each stripe, is added to what attention returns
    and tells positions. A map that stripes do not divide is zero-padded before the qkv projection; the padded pixels
    are real keys.

    Args:
        dim: Channels of the map.
        num_heads: Attention heads, an even number unless `stripe_width` is None.
        stripe_width: Pixels across a stripe; None for one window as large as the map, which all heads share.
        qkv_bias: Whether the qkv projection has a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If `stripe_width` is not positive, or `num_heads` does not fit.

    Paper: CSWin Transformer, arXiv 2107.00652.
    """

    cost = "O(N√N)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        stripe_width: int | None = 7,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, None, qkv_bias, qk_scale, proj_drop)
        if stripe_width is not None and stripe_width < 1:
            raise ValueError(f"stripe_width={stripe_width} must be at least 1, or None for the whole map")
        if stripe_width is not None and num_heads % 2 != 0:
            raise ValueError(f"num_heads={num_heads} must be even, since stripes of each direction get half of them")
        self.stripe_width = stripe_width
        branches = 1 if stripe_width is None else 2
        self.branch_heads = num_heads // branches
        width = dim // branches
        self.lepe = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in range(branches))

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        height, width = x.shape[1:3]
        side = self.stripe_width
        if side is None:
            return self.project_out(self._attend(0, *self.project_in(x)))
        q, k, v = self.project_in(pad_to_multiple(x, side))
        first, second = ([t[..., part, :] for t in (q, k, v)] for part in self._halves())
        # Columns of a map are the rows of its transpose.
        vertical = self._in_stripes(0, side, *(t.transpose(1, 2) for t in first)).transpose(1, 2)
        out = torch.cat([vertical, self._in_stripes(1, side, *second)], 3)
        return self.project_out(crop_to_size(out, height, width))

    def _halves(self) -> tuple[slice, slice]:
        return slice(None, self.branch_heads), slice(self.branch_heads, None)

    def _in_stripes(self, branch: int, side: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention inside horizontal stripes of `(B, H, W, heads, D)`, `side` rows each; the second axis is cut."""
        batch, rows, columns = q.shape[:3]
        stripes = (t.contiguous().reshape(batch * (rows // side), side, columns, *t.shape[3:]) for t in (q, k, v))
        return self._attend(branch, *stripes).reshape(batch, rows, columns, *q.shape[3:])

    def _attend(self, branch: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Dense attention inside each window `(N, h, w, heads, D)`, and the convolution of its values."""
        # Merging axes of other strides would tie a trace to a batch of more than one image.
        q, k, v = (t.contiguous() for t in (q, k, v))
        flat = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(*flat, scale=self.scale).transpose(1, 2)
        conv = self.lepe[branch]
        vertical = self.stripe_width is not None and branch == 0  # its windows come transposed
        kernel = conv.weight.transpose(2, 3) if vertical else conv.weight
        values = v.flatten(3).permute(0, 3, 1, 2)
        positions = F.conv2d(values, kernel, conv.bias, padding=1, groups=values.shape[1])
        return out.reshape(v.shape) + positions.permute(0, 2, 3, 1).reshape(v.shape)

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of the attention products and the convolution on one map, softmax left out."""
        if self.stripe_width is None:
            return 2 * (height * width) ** 2 * self.dim + 9 * height * width * self.dim
        side = self.stripe_width
        height, width = -(-height // side) * side, -(-width // side) * side
        return height * width * side * (height + width) * self.dim + 9 * height * width * self.dim
