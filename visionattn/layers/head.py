# SPDX-License-Identifier: Apache-2.0
"""Heads of the classifiers, by name: `(dim, num_classes, pool_type, drop_rate)` makes one for maps `(B, H, W, C)`."""

from collections.abc import Callable
from functools import partial

from timm.layers import ClassifierHead, ClNormMlpClassifierHead
from torch import nn


def linear_head(dim: int, num_classes: int, pool_type: str, drop_rate: float) -> nn.Module:
    """Pooling, then one linear layer."""
    return ClassifierHead(dim, num_classes, pool_type=pool_type, drop_rate=drop_rate, input_fmt="NHWC")


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
    return head.pool_type if isinstance(head, ClNormMlpClassifierHead) else head.global_pool.pool_type


HEADS: dict[str, Callable[[int, int, str, float], nn.Module]] = {
    "linear": linear_head,
    "norm_mlp": norm_mlp_head,
    "norm_mlp_norm": partial(norm_mlp_head, hidden_norm=True),
}
