# SPDX-License-Identifier: Apache-2.0
"""Mixture of heads: a router weights attention heads for every pixel, and chooses which of them answer at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.kernels import selected_attention
from visionattn.kernels.pattern import ceil_div

from .aggregated import AggregatedAttention, CosineGlobalAttention

# Fewest pixels of a map from which leaving out heads is faster than computing them all; see docs/kernels.md.
WORTHWHILE = 144


class HeadRouter(nn.Module):
    """Weight of each attention head for each pixel; all but the best of the routed heads get zero.

    The first heads are shared: every pixel uses them. Of the others each pixel uses `top_k`. The weights of the shared
    heads sum to their number, those of the routed ones to `top_k`, and two more weights, which sum to 2, tell between
    the groups.

    Args:
        dim: Channels of the map.
        num_heads: Attention heads.
        shared_heads: Heads that every pixel uses; None for a quarter of them, rounded up.
        top_k: Heads that a pixel uses of the others; None for half of them, rounded up. 0 where all heads are shared.

    Raises:
        ValueError: If there are more shared heads than heads, or `top_k` is not from 1 to the number of the others.

    Paper: MoH: Multi-Head Attention as Mixture-of-Head Attention, arXiv 2410.11842.
    """

    def __init__(self, dim: int, num_heads: int, shared_heads: int | None = None, top_k: int | None = None) -> None:
        super().__init__()
        shared = ceil_div(num_heads, 4) if shared_heads is None else shared_heads
        if not 0 <= shared <= num_heads:
            raise ValueError(f"shared_heads={shared} must be from 0 to num_heads={num_heads}")
        routed = num_heads - shared
        self.top_k = ceil_div(routed, 2) if top_k is None else top_k
        if not min(routed, 1) <= self.top_k <= routed:
            raise ValueError(f"top_k={top_k} must be from {min(routed, 1)} to {routed}, the heads that are not shared")
        self.shared_heads, self.routed_heads = shared, routed
        self.shared = nn.Linear(dim, shared, bias=False) if shared > 1 else None
        self.routed = nn.Linear(dim, routed, bias=False) if routed else None
        self.groups = nn.Linear(dim, 2, bias=False) if routed and shared else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weights `(..., num_heads)` of pixels `(..., C)`; and the routers' probabilities `(..., routed heads)`.

        In the precision of the weights, under autocast too: what is rounded here may choose another head.
        """
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self._route(x.float())
        return self._route(x)

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        parts, probabilities = [], None
        if self.shared is not None:
            parts.append(self.shared(x).softmax(-1) * self.shared_heads)
        elif self.shared_heads:
            parts.append(x.new_ones(()).expand(*x.shape[:-1], 1))
        if self.routed is not None:
            probabilities = self.routed(x).softmax(-1)
            parts.append(self._weights(probabilities))
        if self.groups is not None:
            pair = self.groups(x).softmax(-1) * 2
            parts = [part * weight for part, weight in zip(parts, pair.split(1, -1), strict=True)]
        return torch.cat(parts, -1), probabilities

    def _weights(self, probabilities: Tensor) -> Tensor:
        best, heads = probabilities.topk(self.top_k, -1)
        best = best / best.sum(-1, keepdim=True).clamp_min(torch.finfo(best.dtype).eps) * self.top_k
        return torch.zeros_like(probabilities).scatter(-1, heads, best)

    def imbalance(self, probabilities: Tensor) -> Tensor:
        """How unevenly the routed heads are chosen: `top_k` if evenly, more if not; a scalar.

        Args:
            probabilities: What the router returned for a batch.
        """
        chosen = torch.zeros_like(probabilities).scatter(-1, probabilities.topk(self.top_k, -1).indices, 1.0)
        # Shares of float32, as the reference has them.
        shares = chosen.flatten(0, -2).float().mean(0).to(probabilities.dtype)
        return self.routed_heads**2 * (probabilities.flatten(0, -2).mean(0) * shares).mean()

    def macs(self) -> int:
        """Multiply-accumulates of one pixel."""
        return sum(layer.weight.numel() for layer in (self.shared, self.routed, self.groups) if layer is not None)


@contextmanager
def watch_imbalance(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects how unevenly each router of `model` chooses, in a list that is filled when the context ends.

    The authors add 0.01 times the mean of the list to the loss of training. Models without routers leave it empty.

        with watch_imbalance(model) as imbalances:
            logits = model(images)
        loss = F.cross_entropy(logits, labels) + 0.01 * torch.stack(imbalances).mean()

    Args:
        model: Any model; each of its routers should run once.
    """
    found: list[tuple[HeadRouter, Tensor]] = []
    imbalances: list[Tensor] = []

    def note(router: Any, inputs: Any, output: tuple[Tensor, Tensor | None]) -> None:
        if output[1] is not None:
            found.append((router, output[1]))

    handles = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, HeadRouter)]
    try:
        yield imbalances
    finally:
        for handle in handles:
            handle.remove()
    # Not in the hook: a block that is recomputed in the backward pass computes what it computed before, and no more.
    imbalances.extend(router.imbalance(probabilities) for router, probabilities in found)


class MoHAggregatedAttention(AggregatedAttention):
    """`AggregatedAttention` whose heads a router weights for every pixel; all heads are computed.

    Args:
        dim: Channels of the map; a multiple of `num_heads`.
        num_heads: Attention heads.
        shared_heads: As for `HeadRouter`.
        top_k: As for `HeadRouter`.
        **kwargs: Of `AggregatedAttention`.

    Raises:
        ValueError: As `HeadRouter` and `AggregatedAttention` do.

    Paper: MoH: Multi-Head Attention as Mixture-of-Head Attention, arXiv 2410.11842.
    """

    def __init__(
        self, dim: int, num_heads: int, shared_heads: int | None = None, top_k: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(dim, num_heads, **kwargs)
        self.router = HeadRouter(dim, num_heads, shared_heads, top_k)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        heads = self.attend(x)
        return self.project_out(heads * self.router(x)[0][..., None])

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of routers, position bias and products with keys, values and tokens on one map."""
        return super().attention_macs(height, width) + height * width * self.router.macs()


class MoHCosineGlobalAttention(CosineGlobalAttention):
    """`CosineGlobalAttention` whose heads a router weights for every pixel.

    On maps of `WORTHWHILE` pixels and more, heads are computed only for the pixels that chose them, unless gradients
    are wanted or the layer is traced.

    Args:
        dim: Channels of the map; a multiple of `num_heads`.
        num_heads: Attention heads.
        shared_heads: As for `HeadRouter`.
        top_k: As for `HeadRouter`.
        **kwargs: Of `CosineGlobalAttention`.

    Raises:
        ValueError: As `HeadRouter` and `CosineGlobalAttention` do.

    Paper: MoH: Multi-Head Attention as Mixture-of-Head Attention, arXiv 2410.11842.
    """

    def __init__(
        self, dim: int, num_heads: int, shared_heads: int | None = None, top_k: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(dim, num_heads, **kwargs)
        self.router = HeadRouter(dim, num_heads, shared_heads, top_k)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        height, width = x.shape[1:3]
        weights = self.router(x)[0].flatten(1, 2)
        q, k, v, bias = self.heads_in(x)
        skips = not (torch.is_grad_enabled() or torch.compiler.is_compiling() or x.is_meta)
        if skips and self.router.top_k < self.router.routed_heads and height * width >= WORTHWHILE:
            heads = self._chosen(q, k, v, bias, weights)
        else:
            heads = _attend(q, k, v, bias)
        return self.project_out((heads * weights[..., None]).unflatten(1, (height, width)))

    def _chosen(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, weights: Tensor) -> Tensor:
        """What heads return `(B, N, heads, D)`, zeros for the pixels that did not choose them."""
        shared = self.router.shared_heads
        others = (t[:, :, shared:] for t in (q, k, v, weights > 0))
        routed = selected_attention(*others, scale=1.0, bias=bias[shared:])
        always = _attend(q[:, :, :shared], k[:, :, :shared], v[:, :, :shared], bias[:shared])
        return torch.cat([always, routed], 2)

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of routers, position bias and both attention products, of all heads, on one map."""
        return super().attention_macs(height, width) + height * width * self.router.macs()


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention of all tokens `(B, N, heads, D)` to all."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0).transpose(1, 2)
