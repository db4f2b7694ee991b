# SPDX-License-Identifier: Apache-2.0
"""Softmax attention among tokens, such as those that a class token leads."""

import torch.nn.functional as F
from torch import Tensor

from .linear_mixer import LinearMixer


class TokenAttention(LinearMixer):
    """Every token attends to all tokens, a class token included; positions play no part.

    Args:
        dim: Channels of the tokens; a multiple of `num_heads`.
        num_heads: Attention heads.
        qkv_bias: Whether the qkv projection has a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If `num_heads` does not divide `dim`.

    Paper: An Image is Worth 16x16 Words, arXiv 2010.11929.
    """

    def __init__(
        self, dim: int, num_heads: int, qkv_bias: bool = True, qk_scale: float | None = None, proj_drop: float = 0.0
    ) -> None:
        super().__init__(dim, num_heads, None, qkv_bias, qk_scale, proj_drop)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Mixes tokens `(B, N, C)` or a map `(B, H, W, C)`; the size of tokens' map changes nothing."""
        q, k, v = (t.flatten(1, -3).transpose(1, 2) for t in self.project_in(x))
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2)
        return self.project_out(out.unflatten(1, x.shape[1:-1]))

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of the two attention products of one image, softmax left out."""
        return 2 * (height * width + 1) ** 2 * self.dim
