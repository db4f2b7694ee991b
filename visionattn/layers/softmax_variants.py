# SPDX-License-Identifier: Apache-2.0
"""Small changes to softmax attention: a gate after it, weights that reach zero, cosines as logits."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .tokens import TokenMixer, at_least_float32, in_chunks, number_of


class GatedAttention(TokenMixer):
    """Softmax attention, each of whose results is multiplied by `sigmoid(x W)` before the output projection.

    Args:
        dim: Channels of the tokens; a multiple of `num_heads`.
        num_heads: Attention heads.
        qkv_bias: Whether the qkv projection has a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.
        headwise: Whether a head has one gate instead of one a channel.

    Raises:
        ValueError: If `num_heads` does not divide `dim`.

    Paper: Gated Attention for Large Language Models: Non-linearity, Sparsity, and Attention-Sink-Free,
    arXiv 2505.06708.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        headwise: bool = False,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, qk_scale, proj_drop)
        self.gate = nn.Linear(dim, num_heads if headwise else dim)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Mixes tokens `(B, N, C)` or a map `(B, H, W, C)`; the size of tokens' map changes nothing."""
        return self.project_out(self.mix(x) * self.gate(x).sigmoid().unflatten(-1, (self.num_heads, -1)))


class ClippedAttention(TokenMixer):
    """Softmax attention whose weights are stretched beyond [0, 1] and clipped to it, so that they can be zero and one.

    Weights are `clip((upper - lower) softmax + lower, 0, 1)` with `lower = -alpha / N`.

    Args:
        dim: Channels of the tokens; a multiple of `num_heads`.
        num_heads: Attention heads.
        qkv_bias: Whether the qkv projection has a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.
        alpha: Weights below about `alpha / N` become zero, and have no gradient. From 1 on these are all weights where
            attention is uniform, as it is nearly before training.
        upper: What a weight of one is stretched to.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, `alpha` is negative or `upper` is below 1.

    Paper: Quantizable Transformers: Removing Outliers by Helping Attention Heads Do Nothing, arXiv 2306.12929.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        alpha: float = 0.5,
        upper: float = 1.0,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, qk_scale, proj_drop)
        if alpha < 0:
            raise ValueError(f"alpha={alpha} must not be negative")
        if upper < 1:
            raise ValueError(f"upper={upper} must be at least 1")
        self.alpha, self.upper = alpha, upper

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention with clipped weights."""
        lower = -self.alpha / number_of(k, -2)

        def attend(queries: Tensor) -> Tensor:
            weights = (self.upper - lower) * self.logits(queries, k).softmax(-1) + lower
            return weights.clamp(0, 1).to(v.dtype) @ v

        return in_chunks(attend, q, k.shape[-2])


class NormalizedAttention(TokenMixer):
    """Softmax attention whose logits are cosines of queries and keys, times one learned number.

    Args:
        dim: Channels of the tokens; a multiple of `num_heads`.
        num_heads: Attention heads.
        qkv_bias: Whether the qkv projection has a bias.
        proj_drop: Dropout after the output projection.
        num_tokens: The learned number starts at `log2(num_tokens² - num_tokens)`.

    Raises:
        ValueError: If `num_heads` does not divide `dim` or `num_tokens` is below 2.

    Paper: Query-Key Normalization for Transformers, arXiv 2010.04245.
    """

    def __init__(
        self, dim: int, num_heads: int, qkv_bias: bool = True, proj_drop: float = 0.0, num_tokens: int = 196
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, None, proj_drop)
        if num_tokens < 2:
            raise ValueError(f"num_tokens={num_tokens} must be at least 2")
        self.gain = nn.Parameter(torch.tensor([math.log2(num_tokens**2 - num_tokens)]))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of normed queries and keys."""
        q, k = (F.normalize(at_least_float32(t), dim=-1) for t in (q, k))
        return F.scaled_dot_product_attention((q * self.gain).to(v.dtype), k.to(v.dtype), v, scale=1.0)
