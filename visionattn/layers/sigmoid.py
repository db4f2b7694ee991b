# SPDX-License-Identifier: Apache-2.0
"""Attention whose weights are sigmoids of the logits: no weight depends on another key's logit."""

from torch import Tensor, nn

from .tokens import TokenMixer, at_least_float32, in_chunks, number_of


class SigmoidAttention(TokenMixer):
    """Every token attends to all tokens, with weights `sigmoid(q k / sqrt(D) - log N)` that need not sum to one.

    With logits of zero they sum to `N / (N + 1)`. N is the number of keys at hand, whatever the map.

    Args:
        dim: Channels of the tokens; a multiple of `num_heads`.
        num_heads: Attention heads.
        qkv_bias: Whether the qkv projection has a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.
        qk_norm: Whether queries and keys pass a LayerNorm over each head's channels first.

    Raises:
        ValueError: If `num_heads` does not divide `dim`.

    Paper: Theory, Analysis, and Best Practices for Sigmoid Self-Attention, arXiv 2409.04431.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        qk_norm: bool = False,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, qk_scale, proj_drop)
        head_dim = dim // num_heads
        self.q_norm = nn.LayerNorm(head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head_dim) if qk_norm else nn.Identity()

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Sigmoid attention."""
        return sigmoid_attention(self.q_norm(q), self.k_norm(k), v, self.scale)


def sigmoid_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, bias: float | None = None) -> Tensor:
    """Values weighed by `sigmoid(scale * q k + bias)`.

    Args:
        q: Queries `(B, heads, L, D)`.
        k: Keys `(B, heads, N, D)`.
        v: Values `(B, heads, N, E)`.
        scale: Factor on the logits; None means `D ** -0.5`.
        bias: Added to the logits; None means `-log N`.

    Returns:
        `(B, heads, L, E)`. Memory is linear in L and N.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    shift = -number_of(k, -2).log() if bias is None else bias

    def attend(queries: Tensor) -> Tensor:
        logits = at_least_float32((queries * scale) @ k.transpose(-2, -1)) + shift
        return logits.sigmoid().to(v.dtype) @ v

    return in_chunks(attend, q, k.shape[-2])
