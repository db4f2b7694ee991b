# SPDX-License-Identifier: Apache-2.0
"""Token pooling: attention's result is redundant, and cluster centres stand for it."""

import torch
from torch import Tensor

from visionattn.kernels.pattern import ceil_div

from .tokens import TokenMixer, at_least_float32, full_precision


class TokenPooling(TokenMixer):
    """Attention, whose results are then clustered; every token gets the centre of its cluster.

    Clusters are those of weighted K-means, begun at the tokens that receive most attention; weights are the attention
    that a token receives. The paper hands the centres on alone; here tokens keep their places, as maps must.

    Args:
        dim: Channels of the tokens; a multiple of `num_heads`.
        num_heads: Attention heads.
        qkv_bias: Whether the qkv projection has a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.
        cluster_size: Tokens of one cluster, on average.
        iterations: Iterations of K-means.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, or `cluster_size` or `iterations` is not positive.

    Paper: Token Pooling in Vision Transformers, arXiv 2110.03860.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        cluster_size: int = 2,
        iterations: int = 3,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, qk_scale, proj_drop)
        for name, value in (("cluster_size", cluster_size), ("iterations", iterations)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.cluster_size, self.iterations = cluster_size, iterations

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Mixes tokens `(B, N, C)` or a map `(B, H, W, C)`; the size of tokens' map changes nothing."""
        q, k, v = (t.flatten(1, -3).transpose(1, 2) for t in self.project_in(x))
        weights = self.logits(q, k).softmax(-1)
        out = self.proj((weights.to(v.dtype) @ v).transpose(1, 2).flatten(2))
        significance = weights.sum((1, 2))
        first = significance.topk(ceil_div(out.shape[1], self.cluster_size)).indices
        centres, assignment = pool_tokens(out, first, self.iterations, significance)
        pooled = centres.gather(1, assignment[..., None].expand(-1, -1, out.shape[2])).to(out.dtype)
        return self.proj_drop(pooled).unflatten(1, x.shape[1:-1])


def pool_tokens(x: Tensor, first: Tensor, iterations: int, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Centres of clusters by K-means; a cluster without tokens keeps its centre.

    Args:
        x: Tokens `(B, N, C)`.
        first: Indices `(B, K)` of the tokens that the clusters begin with.
        iterations: Iterations, at least one.
        weights: Positive weights `(B, N)` of the tokens in the centres; None for ones.

    Returns:
        Centres `(B, K, C)`, in float32 at least, and the nearest one of each token, `(B, N)`. Gradients reach the
        centres' own tokens and weights.
    """
    with full_precision(x):
        x = at_least_float32(x)
        centres = x.gather(1, first[..., None].expand(-1, -1, x.shape[2]))
        numbers = torch.arange(first.shape[1], device=x.device)
        for _ in range(iterations):
            members = (_nearest(x, centres)[..., None] == numbers).to(x.dtype).transpose(1, 2)
            if weights is not None:
                members = members * weights.to(x.dtype)[:, None]
            mass = members.sum(-1, keepdim=True)
            centres = torch.where(mass > 0, members @ x / torch.where(mass > 0, mass, 1), centres)
        return centres, _nearest(x, centres)


@torch.no_grad()
def _nearest(x: Tensor, centres: Tensor) -> Tensor:
    """Index of the centre nearest to each token; the least on a tie."""
    # Squared distances less the tokens' own squares, which are the same for all centres.
    return (centres.square().sum(-1)[:, None] - 2 * (x @ centres.transpose(1, 2))).argmin(-1)
