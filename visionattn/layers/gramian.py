# SPDX-License-Identifier: Apache-2.0
"""Class tokens made of Gram matrices, refined by class attention, and the classifier that sums several of them.

Paper: Gramian Attention Heads are Strong yet Efficient Vision Learners, arXiv 2310.16483.
"""

from collections.abc import Callable
from typing import cast

import torch
from timm.layers import DropPath, LayerScale
from torch import Tensor, nn
from torch.nn import functional as F

from .batch_norm import BatchNorm
from .checks import check_heads

POOLS = ("gram", "avg", "max", "")


class GroupedMlp(nn.Module):
    """MLP whose layers see groups of the channels, shuffled in between.

    Args:
        dim: Channels of the map.
        hidden: Channels inside.
        drop: Dropout after the activation and after the last layer.
        groups: Groups of channels, a divisor of `dim` and `hidden`.
    """

    def __init__(self, dim: int, hidden: int, drop: float = 0.0, groups: int = 2) -> None:
        super().__init__()
        self.groups = groups
        self.fc1 = nn.Conv2d(dim, hidden, 1, groups=groups)
        self.act = nn.GELU()
        self.drop = nn.Dropout(drop)
        self.fc2 = nn.Conv2d(hidden, dim, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, H, W, C)` to the same shape."""
        x = self.drop(self.act(self.fc1(x.permute(0, 3, 1, 2))))
        # Of each group's neighbours one goes to every group.
        x = x.unflatten(1, (-1, self.groups)).transpose(1, 2).flatten(1, 2)
        return self.drop(self.fc2(x).permute(0, 2, 3, 1))


class ClassAttention(nn.Module):
    """A class token attends to itself and to the tokens of a map, by q, k, v projections without bias.

    Args:
        dim: Channels.
        num_heads: Attention heads, a divisor of `width`.
        width: Channels of queries, keys and values together.

    Paper: Going deeper with Image Transformers, arXiv 2103.17239.
    """

    def __init__(self, dim: int, num_heads: int, width: int) -> None:
        super().__init__()
        check_heads(width, num_heads)
        self.num_heads = num_heads
        self.q, self.k, self.v = (nn.Linear(dim, width, bias=False) for _ in range(3))
        self.proj = nn.Linear(width, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens `(B, 1 + N, C)`, the class token first, to its update `(B, 1, C)`."""
        projected = (self.q(tokens[:, :1]), self.k(tokens), self.v(tokens))
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in projected)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class GramianToken(nn.Module):
    """Class token of a map: the upper triangle of its channels' Gram matrix, embedded, then refined by class attention.

    The map is contracted to `gram_dim` channels first. The triangle, diagonal included, is taken row by row and divided
    by its length.

    Args:
        dim: Channels of the map and of the token.
        gram_dim: Channels whose products are taken.
        attn_dim: Channels of queries, keys and values.
        num_heads: Heads of the class attention.
        contraction_groups: Groups of the contraction.
        embedding_groups: Groups of the embedding, a divisor of `gram_dim * (gram_dim + 1) / 2`.
        mlp_groups: Groups of the token's MLP.
        layer: Makes a block of maps `(B, H, W, gram_dim)` before the products, from `(gram_dim, drop_path)`; None for
            none.
        layer_scale: Initial value of per-channel factors on attention and MLP.
        drop_path: Probability that a sample skips them in training.

    Raises:
        ValueError: If `num_heads` does not divide `attn_dim`, or groups do not divide their channels.
    """

    def __init__(
        self,
        dim: int,
        gram_dim: int = 192,
        attn_dim: int = 168,
        num_heads: int = 8,
        contraction_groups: int = 1,
        embedding_groups: int = 8,
        mlp_groups: int = 4,
        layer: Callable[[int, float], nn.Module] | None = None,
        layer_scale: float = 1e-4,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        products = gram_dim * (gram_dim + 1) // 2
        if products % embedding_groups != 0:
            raise ValueError(
                f"embedding_groups={embedding_groups} must divide the {products} products of gram_dim={gram_dim}"
            )
        self.contraction = nn.Sequential(nn.Conv2d(dim, gram_dim, 1, groups=contraction_groups), BatchNorm(gram_dim))
        self.layer = nn.Identity() if layer is None else layer(gram_dim, drop_path)
        self.embedding = nn.Sequential(nn.Conv2d(products, dim, 1, groups=embedding_groups), BatchNorm(dim))
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = ClassAttention(dim, num_heads, attn_dim)
        self.mlp = GroupedMlp(dim, 4 * dim, groups=mlp_groups)
        self.scale1, self.scale2 = LayerScale(dim, layer_scale), LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Token `(B, C)` of a map `(B, H, W, C)`."""
        token = self.embedding(self.gram_vector(x)[:, :, None, None]).flatten(2).transpose(1, 2)
        tokens = torch.cat([token, x.flatten(1, 2)], 1)
        token = token + self.drop_path(self.scale1(self.attn(self.norm1(tokens))))
        update = self.mlp(self.norm2(token)[:, None])[:, 0]
        return (token + self.drop_path(self.scale2(update)))[:, 0]

    def gram_vector(self, x: Tensor) -> Tensor:
        """Unit vector `(B, gram_dim * (gram_dim + 1) / 2)` of the products of a map's channels."""
        x = self.contraction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        channels = self.layer(x).flatten(1, 2)
        channels = channels / channels.shape[1] ** 0.5  # sums of many products overflow in half precision
        gram = (channels.transpose(1, 2) @ channels).flatten(1)
        return F.normalize(gram[:, upper_triangle(x.shape[-1], x.device)], dim=1)


def upper_triangle(side: int, device: torch.device) -> Tensor:
    """Where the entries of a matrix's upper triangle, diagonal included, lie in the flattened matrix, row by row."""
    # torch.triu_indices has no ONNX form: rows are counted up where each begins.
    row, entry = torch.arange(side, device=device), torch.arange(side * (side + 1) // 2, device=device)
    starts = (row * side - row * (row - 1) // 2)[1:]
    row = torch.zeros_like(entry).scatter(0, starts, torch.ones_like(starts)).cumsum(0)
    return entry + row * (row + 1) // 2


class SummedLinear(nn.Module):
    """A linear layer for every one of several vectors; their results are summed.

    Args:
        in_features: Channels of each vector.
        out_features: Channels of the sum.
        branches: Vectors.
    """

    def __init__(self, in_features: int, out_features: int, branches: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.branches = nn.ModuleList(nn.Linear(in_features, out_features) for _ in range(branches))

    def forward(self, x: Tensor) -> Tensor:
        """Sum `(B, out_features)` of what the layers make of `(B, branches * in_features)`."""
        return torch.stack(self.each(x)).sum(0)

    def each(self, x: Tensor) -> list[Tensor]:
        """What each layer makes of its vector, `(B, out_features)`."""
        return [fc(t) for fc, t in zip(self.branches, x.split(self.in_features, -1), strict=True)]


class GramianHead(nn.Module):
    """Classifier of maps `(B, H, W, C)` by Gramian class tokens, each with its own linear layer; logits are summed.

    Args:
        dim: Channels of the map.
        num_classes: Classes; 0 for none.
        pool_type: "gram" makes the tokens; "avg" and "max" pool the map instead, and "" leaves it as it is. With
            neither pooling nor classes there are no tokens any more.
        drop_rate: Dropout before the linear layers.
        token: Makes a `GramianToken` from `dim`.
        branches: Number of tokens.

    Raises:
        ValueError: If there is no such pooling, or there are no tokens for it.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        pool_type: str,
        drop_rate: float,
        token: Callable[[int], nn.Module] = GramianToken,
        branches: int = 5,
    ) -> None:
        super().__init__()
        if branches < 1:
            raise ValueError(f"branches={branches} must be at least 1")
        self.dim = dim
        self.tokens = nn.ModuleList(token(dim) for _ in range(branches))
        self.drop = nn.Dropout(drop_rate)
        self.trains_branches = False
        self.pool_type: str = pool_type
        self.reset(num_classes, pool_type)

    @property
    def num_features(self) -> int:
        """Channels of what the linear layers read."""
        return self.dim * len(self.tokens) if self.pool_type == "gram" else self.dim

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        """Replaces the linear layers, and the pooling unless it is None."""
        if pool_type not in (None, *POOLS):
            raise ValueError(f"global_pool={pool_type!r} must be one of {POOLS}")
        if pool_type == "gram" and len(self.tokens) == 0:
            raise ValueError("global_pool='gram' needs the tokens that num_classes=0, global_pool='' took away")
        self.pool_type = self.pool_type if pool_type is None else pool_type
        if num_classes == 0 and self.pool_type == "":
            self.tokens = nn.ModuleList()
        self.fc: nn.Module = nn.Identity()
        if num_classes > 0 and self.pool_type == "gram":
            self.fc = SummedLinear(self.dim, num_classes, len(self.tokens))
        elif num_classes > 0:
            self.fc = nn.Linear(self.dim, num_classes)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor | list[Tensor]:
        """Logits `(B, num_classes)`, or the tokens side by side; in training with `trains_branches` each token's."""
        if self.pool_type == "gram":
            x = torch.cat([token(x) for token in self.tokens], -1)
        elif self.pool_type:
            x = x.mean((1, 2)) if self.pool_type == "avg" else x.amax((1, 2))
        x = self.drop(x)
        if self.training and self.trains_branches and isinstance(self.fc, SummedLinear) and not pre_logits:
            return self.fc.each(x)
        return x if pre_logits else self.fc(x)

    def branch_logits(self, x: Tensor) -> list[Tensor]:
        """Logits `(B, num_classes)` of each token, whose sum is what `forward` returns.

        Raises:
            ValueError: If there are no tokens or no classes.
        """
        if not isinstance(self.fc, SummedLinear):
            raise ValueError(f"a head of global_pool={self.pool_type!r} and its classifier {self.fc} have no branches")
        return self.fc.each(cast(Tensor, self.forward(x, pre_logits=True)))
