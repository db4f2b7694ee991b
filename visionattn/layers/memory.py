# SPDX-License-Identifier: Apache-2.0
"""Attention to more than the image: learned memory tokens, and a cache that earlier images filled."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .init import init_table
from .tokens import TokenMixer


class MemoryAttention(TokenMixer):
    """Every token attends to all tokens and to learned ones, which ask nothing themselves.

    Args:
        dim: Channels of the tokens; a multiple of `num_heads`.
        num_heads: Attention heads.
        qkv_bias: Whether the qkv projection has a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.
        num_memories: Number of learned tokens.

    Raises:
        ValueError: If `num_heads` does not divide `dim` or `num_memories` is not positive.

    Paper: Fine-tuning Image Transformers using Learnable Memory, arXiv 2203.15243.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        num_memories: int = 8,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, qk_scale, proj_drop)
        if num_memories < 1:
            raise ValueError(f"num_memories={num_memories} must be at least 1")
        self.memory = nn.Parameter(torch.empty(num_memories, dim))
        init_table(self.memory)

    def no_weight_decay(self) -> set[str]:
        """Parameters that no recipe decays, besides vectors."""
        return {"memory"}

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention to tokens and memory."""
        _, *memory = self.qkv(self.memory).unflatten(-1, (3, self.num_heads, -1)).permute(1, 2, 0, 3).unbind(0)
        k, v = (torch.cat([t, m.expand(t.shape[0], -1, -1, -1)], 2) for t, m in zip((k, v), memory, strict=True))
        return super().attend(q, k, v)


class RecurrentCacheAttention(TokenMixer):
    """Attention to the image's tokens and to a cache, a recurrent state that every image in training updates by gates.

    A part of the channels is summarised to `num_slots` tokens X, resized linearly along the row-major tokens. With
    gates `u, r = sigmoid([X, C] W)` the cache that the image reads is `(1 - u) C + u tanh([X, r C] V)`, and results
    are `sigmoid(w) o_cache + (1 - sigmoid(w)) o_self` with one w a head. C itself, a buffer, becomes the mean over the
    images of each training step, without gradient, and stays as it is in evaluation. Steps that recompute activations
    (gradient checkpointing) would read another cache the second time.

    Args:
        dim: Channels of the tokens; a multiple of `num_heads`.
        num_heads: Attention heads.
        qkv_bias: Whether the qkv projection has a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.
        num_slots: Tokens of the cache.
        cache_ratio: Channels of the cache over `dim`; a whole number of channels, at least one.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, `num_slots` is not positive or `cache_ratio` out of range.

    Paper: Cached Transformers: Improving Transformers with Differentiable Memory Cache, arXiv 2312.12742.
    """

    cache: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        num_slots: int = 64,
        cache_ratio: float = 0.5,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, qk_scale, proj_drop)
        width = int(dim * cache_ratio)
        if not 1 <= width <= dim:
            raise ValueError(f"cache_ratio={cache_ratio} makes {width} of {dim} channels; it must make 1 to {dim}")
        if num_slots < 1:
            raise ValueError(f"num_slots={num_slots} must be at least 1")
        self.num_slots, self.width = num_slots, width
        self.gates = nn.Linear(2 * width, 2 * width)
        self.update = nn.Linear(2 * width, width)
        self.cache_kv = nn.Linear(width, 2 * dim, bias=qkv_bias)
        self.share = nn.Parameter(torch.zeros(num_heads))
        self.register_buffer("cache", torch.zeros(num_slots, width))

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Mixes tokens `(B, N, C)` or a map `(B, H, W, C)`; the size of tokens' map changes nothing."""
        cache = self._updated(x.flatten(1, -2)[..., : self.width])
        q, k, v = (t.flatten(1, -3).transpose(1, 2) for t in self.project_in(x))
        keys, values = self.cache_kv(cache).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        share = self.share.sigmoid().to(v.dtype)[:, None, None]
        out = share * self.attend(q, keys, values) + (1 - share) * self.attend(q, k, v)
        return self.project_out(out.transpose(1, 2).unflatten(1, x.shape[1:-1]))

    def _updated(self, tokens: Tensor) -> Tensor:
        """Cache `(B, slots, C)` that each image of tokens `(B, N, C)` reads."""
        # A copy in training, where the buffer changes before the backward pass.
        cache = self.cache.clone() if self.training else self.cache
        before = cache.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        seen = resize_tokens(tokens, self.num_slots)
        update, reset = self.gates(torch.cat([seen, before], -1)).sigmoid().chunk(2, -1)
        change = self.update(torch.cat([seen, reset * before], -1)).tanh()
        after = (1 - update) * before + update * change
        if self.training:
            with torch.no_grad():
                self.cache.copy_(after.mean(0))
        return after


def resize_tokens(x: Tensor, count: int) -> Tensor:
    """Tokens `(B, N, C)` resized linearly to `count`."""
    return F.interpolate(x.transpose(1, 2), size=count, mode="linear", align_corners=False).transpose(1, 2)
