# SPDX-License-Identifier: Apache-2.0
"""Heads of the classifiers, by name: `(dim, num_classes, pool_type, drop_rate)` makes one for maps `(B, H, W, C)`."""

from collections.abc import Callable
from functools import partial

from timm.layers import ClassifierHead, ClNormMlpClassifierHead
from torch import Tensor, nn

TOKEN_POOLS = ("token", "avg", "max", "")


class TokenHead(nn.Module):
    """Classifier of tokens `(B, 1 + N, C)` that a class token leads.

    Args:
        dim: Channels of the tokens.
        num_classes: Classes; 0 for none.
        pool_type: "token" reads the class token, "avg" and "max" the others; "" reads all and returns all.
        drop_rate: Dropout before the linear layer.

    Raises:
        ValueError: If there is no such pooling.
    """

    def __init__(self, dim: int, num_classes: int, pool_type: str, drop_rate: float) -> None:
        super().__init__()
        self.num_features = dim
        self.drop = nn.Dropout(drop_rate)
        self.reset(num_classes, pool_type)

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        """Replaces the linear layer, and the pooling unless it is None."""
        if pool_type not in (None, *TOKEN_POOLS):
            raise ValueError(f"global_pool={pool_type!r} must be one of {TOKEN_POOLS}")
        self.pool_type = self.pool_type if pool_type is None else pool_type
        self.fc: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits `(B, num_classes)`, or the pooled features."""
        if self.pool_type == "token":
            x = x[:, 0]
        elif self.pool_type:
            x = x[:, 1:].mean(1) if self.pool_type == "avg" else x[:, 1:].amax(1)
        x = self.drop(x)
        return x if pre_logits else self.fc(x)


def linear_head(dim: int, num_classes: int, pool_type: str, drop_rate: float) -> nn.Module:
    """Pooling, then one linear layer."""
    return ClassifierHead(dim, num_classes, pool_type=pool_type, drop_rate=drop_rate, input_fmt="NHWC")


def norm_head(dim: int, num_classes: int, pool_type: str, drop_rate: float) -> nn.Module:
    """Pooling, then LayerNorm, then one linear layer."""
    return ClNormMlpClassifierHead(dim, num_classes, None, pool_type, drop_rate)


def norm_mlp_head(
    dim: int, num_classes: int, pool_type: str, drop_rate: float, ratio: int = 4, hidden_norm: bool = False
) -> nn.Module:
    """Pooling, then LayerNorm, then an MLP.

    Args:
        dim: Channels of the map.
        num_classes: Classes; 0 for none.
        pool_type: Pooling, as timm names it.
        drop_rate: Dropout before the last layer.
        ratio: Hidden width of the MLP over `dim`.
        hidden_norm: Whether the MLP's activation is normed.
    """
    head = ClNormMlpClassifierHead(dim, num_classes, ratio * dim, pool_type, drop_rate)
    if hidden_norm:
        head.pre_logits.add_module("norm", nn.LayerNorm(ratio * dim, 1e-6))
    return head


def pool_type_of(head: nn.Module) -> str:
    """Pooling of a head, as timm names it."""
    return head.pool_type if isinstance(head, (ClNormMlpClassifierHead, TokenHead)) else head.global_pool.pool_type


HEADS: dict[str, Callable[[int, int, str, float], nn.Module]] = {
    "linear": linear_head,
    "token": TokenHead,
    "norm": norm_head,
    "norm_mlp": norm_mlp_head,
    "norm_mlp_norm": partial(norm_mlp_head, hidden_norm=True),
}
