# SPDX-License-Identifier: Apache-2.0
"""Softmax attention among tokens, such as those that a class token leads, and what other mixers share with it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from visionattn.kernels.pattern import is_symbolic

from .linear_mixer import LinearMixer

# Elements of what a mixer makes of one chunk of its tokens.
CHUNK_ELEMENTS = 2**24


class TokenMixer(LinearMixer):
    """Every token attends to all tokens, a class token included; positions play no part.

    Subclasses say in `attend` how: `(B, heads, N, D)` each of queries, keys and values to the same shape.

    Args:
        dim: Channels of the tokens; a multiple of `num_heads`.
        num_heads: Attention heads.
        qkv_bias: Whether the qkv projection has a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If `num_heads` does not divide `dim`.
    """

    cost = "O(N²)"

    def __init__(
        self, dim: int, num_heads: int, qkv_bias: bool = True, qk_scale: float | None = None, proj_drop: float = 0.0
    ) -> None:
        super().__init__(dim, num_heads, None, qkv_bias, qk_scale, proj_drop)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Mixes tokens `(B, N, C)` or a map `(B, H, W, C)`; the size of tokens' map changes nothing."""
        return self.project_out(self.mix(x))

    def mix(self, x: Tensor) -> Tensor:
        """What the heads return, `(B, ..., heads, D)`, before the output projection."""
        q, k, v = (t.flatten(1, -3).transpose(1, 2) for t in self.project_in(x))
        return self.attend(q, k, v).transpose(1, 2).unflatten(1, x.shape[1:-1])

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Softmax attention."""
        return F.scaled_dot_product_attention(q, k, v, scale=self.scale)

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        """Scaled products of queries and keys, `(B, heads, N, n)`, in float32 at least."""
        return at_least_float32((q * self.scale) @ k.transpose(-2, -1))


class TokenAttention(TokenMixer):
    """Every token attends to all tokens, a class token included; positions play no part.

    Args:
        dim: Channels of the tokens; a multiple of `num_heads`.
        num_heads: Attention heads.
        qkv_bias: Whether the qkv projection has a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If `num_heads` does not divide `dim`.

    Paper: An Image is Worth 16x16 Words, arXiv 2010.11929.
    """

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of the two attention products of one image, softmax left out."""
        return 2 * (height * width + 1) ** 2 * self.dim


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor, in float32 where it is of half precision."""
    return x if x.dtype == torch.float64 else x.float()


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Context in which autocast rounds no product of `x`."""
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def in_chunks(attend: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    """`attend(x)`, some tokens at a time where there are many, recomputed in the backward pass.

    Args:
        attend: Treats every token of `x` by itself.
        x: `(B, heads, N, D)`.
        width: Elements that `attend` makes of one token of one head.

    Returns:
        What `attend` returns, in the order of tokens.
    """
    parts = chunks_of(x, width)
    if len(parts) == 1:
        return attend(x)
    call = partial(checkpoint, attend, use_reentrant=False) if torch.is_grad_enabled() else attend
    return torch.cat([call(part) for part in parts], 2)


def chunks_of(x: Tensor, width: int) -> tuple[Tensor, ...]:
    """Parts of tokens `(B, heads, N, D)` of `CHUNK_ELEMENTS`, where a head's token has `width`; one part in a trace."""
    if is_symbolic(*x.shape) or torch.compiler.is_compiling():
        return (x,)
    return x.split(max(CHUNK_ELEMENTS // (x.shape[0] * x.shape[1] * width), 1), 2)


def number_of(x: Tensor, axis: int) -> Tensor:
    """Length of an axis as a tensor, in float32 at least: a symbolic length has no logarithm."""
    return at_least_float32(x.new_ones(())).expand(x.shape[axis]).sum()
