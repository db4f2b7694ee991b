# SPDX-License-Identifier: Apache-2.0
"""What the libraries' window attentions have in common, on maps that are never cut into windows."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from visionattn.kernels import window_attention
from visionattn.kernels.pattern import is_symbolic

Project = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def attend(
    project: Project,
    x: Tensor,
    window: tuple[int, int],
    shift: tuple[int, int],
    bias: Tensor,
    scale: float | None = None,
) -> Tensor:
    """Attention inside windows of a map that is padded before its projection, then rolled.

    Args:
        project: Makes `q, k, v`, each `(B, H, W, heads, D)`, of a map.
        x: `(B, H, W, C)`.
        window: Height and width of a window.
        shift: Rows and columns that the grid is shifted by.
        bias: Table `(heads, 2 * height - 1, 2 * width - 1)` by key minus query.
        scale: Factor of <q, k>; None means `D ** -0.5`.

    Returns:
        `(B, H, W, heads * D)`.
    """
    pad_k = pad_v = None
    if is_ragged(x, window):  # a padded token takes part with what the projection makes of zeros
        _, pad_k, pad_v = (t[0, 0, 0] for t in project(x.new_zeros(1, 1, 1, x.shape[-1])))
    q, k, v = project(x)
    out = window_attention(q, k, v, window, shift=shift, scale=scale, bias=bias, pad_k=pad_k, pad_v=pad_v)
    return out.flatten(3)  # type: ignore[union-attr]


def is_ragged(x: Tensor, window: tuple[int, int]) -> bool:
    """Whether a map `(B, H, W, C)` is no whole number of windows, or may not be, where its size is symbolic."""
    height, width = x.shape[1:3]
    return is_symbolic(height, width) or height % window[0] != 0 or width % window[1] != 0


def split_heads(x: Tensor, heads: int) -> Tensor:
    """`(..., heads, D)` of `(..., heads * D)`."""
    return x.unflatten(-1, (heads, -1))


def split_packed(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views q, k, v `(..., heads, D)` of `(..., 3 * heads * D)`."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).unbind(-3)
    return q, k, v


def cosine(q: Tensor, k: Tensor, v: Tensor, logit_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys of unit length, queries times `exp(logit_scale)`, at most 100, of their head.

    Paper: Swin Transformer V2, arXiv 2111.09883.
    """
    factor = logit_scale.clamp(max=math.log(100.0)).exp().view(-1, 1)
    return (F.normalize(q, dim=-1) * factor).to(v.dtype), F.normalize(k, dim=-1).to(v.dtype), v


def bias_table(rows: Tensor, window: tuple[int, int]) -> Tensor:
    """Our table `(heads, 2 * height - 1, 2 * width - 1)` of Swin's `(rows, heads)`, which counts query minus key."""
    height, width = window
    return rows.unflatten(0, (2 * height - 1, 2 * width - 1)).flip(0, 1).permute(2, 0, 1)
