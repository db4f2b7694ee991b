# SPDX-License-Identifier: Apache-2.0
"""Heads of the classifiers, by name: `(dim, num_classes, pool_type, drop_rate)` makes one for maps `(B, H, W, C)`."""

from collections.abc import Callable
from functools import partial
from typing import Any

from timm.layers import ClassifierHead, ClNormMlpClassifierHead, SelectAdaptivePool2d, get_act_layer
from torch import Tensor, nn

from .batch_norm import BatchNorm

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
        self.pool_type: str = pool_type
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


class ProjectedHead(nn.Module):
    """Classifier of maps `(B, H, W, C)` that are projected to other channels, normed and activated before the pooling.

    Args:
        dim: Channels of the map.
        num_classes: Classes; 0 for none.
        pool_type: Pooling, as timm names it.
        drop_rate: Dropout before the linear layer.
        hidden: Channels after the projection.
        aux_dim: Channels of another map `(B, C, H, W)` that `aux` classifies in training; 0 for no such layer.
    """

    def __init__(
        self, dim: int, num_classes: int, pool_type: str, drop_rate: float, hidden: int = 1024, aux_dim: int = 0
    ) -> None:
        super().__init__()
        self.in_features, self.num_features, self.aux_dim = dim, hidden, aux_dim
        self.global_pool: nn.Module = nn.Identity()
        self.pre_logits: nn.Module = nn.Sequential(nn.Conv2d(dim, hidden, 1, bias=False), BatchNorm(hidden), nn.SiLU())
        self.drop = nn.Dropout(drop_rate)
        self.reset(num_classes, pool_type)

    def reset(self, num_classes: int, pool_type: str | None = None, reset_other: bool = False) -> None:
        """Replaces the linear layers, the pooling unless it is None, and takes the projection out if asked to."""
        if pool_type is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=pool_type, flatten=bool(pool_type))
        if reset_other:
            self.pre_logits, self.num_features = nn.Identity(), self.in_features
        self.fc: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        has_aux = self.aux_dim > 0 and num_classes > 0
        self.aux = AuxiliaryHead(self.aux_dim, num_classes) if has_aux else None

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits `(B, num_classes)`, or the pooled features."""
        x = self.global_pool(self.pre_logits(x.permute(0, 3, 1, 2)))
        x = self.drop(x if x.ndim == 2 else x.permute(0, 2, 3, 1))
        return x if pre_logits else self.fc(x)


class PooledMlpHead(ProjectedHead):
    """Classifier of maps `(B, H, W, C)` that are pooled, then projected to other channels and activated.

    Args:
        dim: Channels of the map.
        num_classes: Classes; 0 for none.
        pool_type: Pooling, as timm names it.
        drop_rate: Dropout before the last layer.
        hidden: Channels after the projection, which has no bias.
        act: Activation, as timm names it.
    """

    def __init__(
        self, dim: int, num_classes: int, pool_type: str, drop_rate: float, hidden: int = 1280, act: str = "gelu"
    ) -> None:
        super().__init__(dim, num_classes, pool_type, drop_rate, hidden)
        self.pre_logits = nn.Sequential(nn.Linear(dim, hidden, bias=False), get_act_layer(act)())

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits `(B, num_classes)`, or the pooled features after the activation."""
        x = self.global_pool(x.permute(0, 3, 1, 2))
        x = self.drop(self.pre_logits(x if x.ndim == 2 else x.permute(0, 2, 3, 1)))
        return x if pre_logits else self.fc(x)


class AuxiliaryHead(nn.Module):
    """Batch norm, average and linear layer of a map `(B, C, H, W)`.

    Args:
        dim: Channels of the map.
        num_classes: Classes.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm = BatchNorm(dim)
        self.fc = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, num_classes)`."""
        return self.fc(self.norm(x).mean((2, 3)))


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


def pool_type_of(head: Any) -> str:
    """Pooling of a head, as timm names it."""
    return head.pool_type if isinstance(head, (ClNormMlpClassifierHead, TokenHead)) else head.global_pool.pool_type


HEADS: dict[str, Callable[[int, int, str, float], nn.Module]] = {
    "linear": linear_head,
    "token": TokenHead,
    "norm": norm_head,
    "norm_mlp": norm_mlp_head,
    "norm_mlp_norm": partial(norm_mlp_head, hidden_norm=True),
    "projected": ProjectedHead,
    "pooled_mlp": PooledMlpHead,
}
