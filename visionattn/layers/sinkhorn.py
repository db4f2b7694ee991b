# SPDX-License-Identifier: Apache-2.0
"""Sinkformer: attention matrices made doubly stochastic by Sinkhorn's iteration."""

import torch
from torch import Tensor

from .tokens import TokenMixer, number_of


class SinkhornAttention(TokenMixer):
    """Every token attends to all tokens, rows and columns of the weights normed in turn.

    One iteration norms the rows alone and is softmax. After an odd number the rows sum to one, and the columns nearly.

    Args:
        dim: Channels of the tokens; a multiple of `num_heads`.
        num_heads: Attention heads.
        qkv_bias: Whether the qkv projection has a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.
        iterations: Norms of rows or columns, beginning with rows.
        eps: Entropic regularisation: logits are divided by it.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, or `iterations` or `eps` is not positive.

    Paper: Sinkformers: Transformers with Doubly Stochastic Attention, arXiv 2110.11773.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        iterations: int = 3,
        eps: float = 1.0,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, qk_scale, proj_drop)
        if iterations < 1:
            raise ValueError(f"iterations={iterations} must be at least 1")
        if eps <= 0:
            raise ValueError(f"eps={eps} must be positive")
        self.iterations, self.eps = iterations, eps

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Values weighed by the doubly stochastic matrix."""
        return sinkhorn(self.logits(q, k), self.iterations, self.eps).to(v.dtype) @ v


def sinkhorn(logits: Tensor, iterations: int = 3, eps: float = 1.0) -> Tensor:
    """Weights whose rows sum to one and whose columns to L / N, as nearly as the iterations get.

    Args:
        logits: `(..., L, N)`, in float32 at least.
        iterations: Norms of rows or columns, beginning with rows.
        eps: Logits are divided by it.

    Returns:
        `(..., L, N)`.
    """
    weights = logits / eps
    share = number_of(logits, -1).log() - number_of(logits, -2).log()
    for i in range(iterations):
        # In logarithms; sums are one a row, and L / N a column.
        if i % 2 == 0:
            weights = weights - torch.logsumexp(weights, -1, keepdim=True)
        else:
            weights = weights - torch.logsumexp(weights, -2, keepdim=True) - share
    return weights.exp()
