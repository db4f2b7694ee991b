# SPDX-License-Identifier: Apache-2.0
"""Attention whose heads exchange logits and weights: by fixed matrices, or by matrices of each query and key."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .norm import RMSNorm
from .tokens import TokenMixer, in_chunks


class TalkingHeadsAttention(TokenMixer):
    """Softmax attention with a linear layer across heads before the softmax and another after it.

    Args:
        dim: Channels of the tokens; a multiple of `num_heads`.
        num_heads: Attention heads.
        qkv_bias: Whether the qkv projection has a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If `num_heads` does not divide `dim`.

    Paper: Talking-Heads Attention, arXiv 2003.02436.
    """

    def __init__(
        self, dim: int, num_heads: int, qkv_bias: bool = True, qk_scale: float | None = None, proj_drop: float = 0.0
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, qk_scale, proj_drop)
        # Rows are heads read, columns heads made; each head starts with itself.
        self.mix_logits = nn.Parameter(torch.eye(num_heads))
        self.mix_weights = nn.Parameter(torch.eye(num_heads))

    def no_weight_decay(self) -> set[str]:
        """Parameters that no recipe decays, besides vectors."""
        return {"mix_logits", "mix_weights"}

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of heads that talk."""

        def attend(queries: Tensor) -> Tensor:
            weights = across_heads(self.logits(queries, k), self.mix_logits).softmax(-1)
            return across_heads(weights, self.mix_weights).to(v.dtype) @ v

        return in_chunks(attend, q, k.shape[-2])


class HeadComposition(nn.Module):
    """Matrices `(B, heads, N, N)` of attention, each entry's heads composed anew by what its query and key say.

    Each side adds a product of low rank, of factors `RMSNorm(w1)` and `w2` from a small MLP, and a gate `tanh(x W)`.

    Args:
        dim: Channels of queries and keys.
        num_heads: Attention heads.
        rank: Rank of the products.
    """

    def __init__(self, dim: int, num_heads: int, rank: int) -> None:
        super().__init__()
        width = 2 * rank * num_heads
        self.num_heads, self.rank = num_heads, rank
        self.mix = nn.Parameter(torch.eye(num_heads))
        sides = ("query", "key")
        self.factors = nn.ModuleDict(
            {s: nn.Sequential(nn.Linear(dim, width, bias=False), nn.GELU(), nn.Linear(width, width, bias=False))
             for s in sides})  # fmt: skip
        self.norms = nn.ModuleDict({s: RMSNorm(num_heads) for s in sides})
        self.gates = nn.ModuleDict({s: nn.Linear(dim, num_heads, bias=False) for s in sides})

    def no_weight_decay(self) -> set[str]:
        """Parameters that no recipe decays, besides vectors."""
        return {"mix"}

    def forward(self, matrix: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """Composes `(B, heads, N, N)` by queries and keys `(B, N, C)`."""
        composed = across_heads(matrix, self.mix)
        for side, tokens, axis in (("query", queries, "n"), ("key", keys, "m")):
            first, second = self.factors[side](tokens).unflatten(-1, (2, self.rank, self.num_heads)).unbind(2)
            first = self.norms[side](first).to(matrix.dtype)
            inner = torch.einsum(f"bhnm,b{axis}rh->brnm", matrix, first)
            composed = composed + torch.einsum(f"brnm,b{axis}rh->bhnm", inner, second.to(matrix.dtype))
            gate = self.gates[side](tokens).tanh().to(matrix.dtype).transpose(1, 2)
            composed = composed + matrix * (gate[..., None] if axis == "n" else gate[..., None, :])
        return composed


class ComposedAttention(TokenMixer):
    """Softmax attention whose heads are composed dynamically, before the softmax and after it.

    Args:
        dim: Channels of the tokens; a multiple of `num_heads`.
        num_heads: Attention heads.
        qkv_bias: Whether the qkv projection has a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.
        rank: Rank of the dynamic matrices.

    Raises:
        ValueError: If `num_heads` does not divide `dim` or `rank` is not positive.

    Paper: Improving Transformers with Dynamically Composable Multi-Head Attention, arXiv 2405.08553.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        rank: int = 2,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, qk_scale, proj_drop)
        if rank < 1:
            raise ValueError(f"rank={rank} must be at least 1")
        self.compose_logits = HeadComposition(dim, num_heads, rank)
        self.compose_weights = HeadComposition(dim, num_heads, rank)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of composed heads."""
        queries, keys = (t.transpose(1, 2).flatten(2) for t in (q, k))
        weights = self.compose_logits(self.logits(q, k), queries, keys).softmax(-1)
        return self.compose_weights(weights, queries, keys).to(v.dtype) @ v


def across_heads(matrix: Tensor, mix: Tensor) -> Tensor:
    """Matrices `(B, heads, N, N)` whose heads are mixed linearly by `(heads, heads)`."""
    return F.linear(matrix.movedim(1, -1), mix.to(matrix.dtype).t()).movedim(-1, 1).to(matrix.dtype)
