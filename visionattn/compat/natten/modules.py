# SPDX-License-Identifier: Apache-2.0
"""NATTEN's modules: neighborhood attention between a qkv projection and an output projection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.compat.natten import _version
from visionattn.compat.natten.functional import check_tuning, neighborhood_av, neighborhood_qk
from visionattn.kernels import LocalPattern, neighborhood_attention
from visionattn.kernels.pattern import Size

T = TypeVar("T")

_ARGUMENTS = """
    Both of NATTEN's interfaces: 0.20 and later (`embed_dim`, `stride`) and 0.14 to 0.17 (`dim`, `bias`, `rel_pos_bias`,
    `attn_drop`). With one of the latter's arguments, maps smaller than ``kernel_size * dilation`` are zero-padded
    before the qkv projection, as those releases do; else they raise, as the former do.

    Args:
        embed_dim: Channels; a multiple of `num_heads`.
        num_heads: Attention heads.
        kernel_size: Keys per axis.
        stride: Neighbouring queries that share one window.
        dilation: Distance between the keys of a window; None means 1.
        is_causal: Hide keys after the query, per axis.
        qkv_bias: Whether the qkv projection has a bias.
        qk_scale: Factor of the products; None and, as in NATTEN, 0 mean ``head_dim ** -0.5``.
        proj_drop: Dropout after the output projection.
        dim: `embed_dim` in 0.14 to 0.17.
        bias: `rel_pos_bias` in 0.14 and 0.15.
        rel_pos_bias: Whether a table `rpb` (heads, 2 * kernel_size - 1 per axis), indexed by key minus query, is added
            to the logits. Where neither is given: True if `install` was told a release before 0.17, else False.
        attn_drop: Dropout on the attention weights.

    Raises:
        ValueError: A size is out of range, or `stride` comes with an argument of 0.14 to 0.17.
        TypeError: An argument is missing, or given under two names.

    Papers: arXiv 2204.07143, 2209.15001 (dilated), 2504.16922 (strided).
"""


def _given(**names: T | None) -> T | None:
    """The value of an argument that has two names."""
    values = [value for value in names.values() if value is not None]
    if len(values) > 1:
        arguments = " and ".join(f"{name}={value}" for name, value in names.items())
        raise TypeError(f"{arguments} are two names of one argument; give one")
    return values[0] if values else None


class _NeighborhoodAttention(nn.Module):
    """What the ranks share; the public classes say how many spatial axes there are."""

    rank: ClassVar[int]
    rpb: nn.Parameter | None

    def __init_subclass__(cls) -> None:
        cls.__doc__ = f"{cls.__doc__}\n{_ARGUMENTS}"

    def __init__(
        self,
        embed_dim: int | None = None,
        num_heads: int | None = None,
        kernel_size: Size | None = None,
        *,
        stride: Size = 1,
        dilation: Size | None = 1,
        is_causal: bool | Sequence[bool] = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        dim: int | None = None,
        bias: bool | None = None,
        rel_pos_bias: bool | None = None,
        attn_drop: float | None = None,
    ) -> None:
        super().__init__()
        width = _given(embed_dim=embed_dim, dim=dim)
        if width is None:
            raise TypeError(f"embed_dim={embed_dim} and dim={dim}: one of them must be given")
        if num_heads is None or kernel_size is None:
            raise TypeError(f"num_heads={num_heads} and kernel_size={kernel_size} must both be given")
        if num_heads < 1 or width % num_heads:
            raise ValueError(f"num_heads={num_heads} must be a positive divisor of the {width} channels")
        release = _version.parse(_version.current)
        earlier = any(x is not None for x in (dim, bias, rel_pos_bias, attn_drop))
        self.pads = earlier or release < (0, 20)
        table = _given(bias=bias, rel_pos_bias=rel_pos_bias)
        has_table = release < (0, 17) if table is None else table
        self.embed_dim = self.dim = width
        self.num_heads = num_heads
        self.pattern = LocalPattern(kernel_size, stride, 1 if dilation is None else dilation, is_causal)
        self.axes = self.pattern.axes(self.rank)
        if earlier and any(axis.stride > 1 for axis in self.axes):
            raise ValueError(f"stride={stride} came with NATTEN 0.20, which has no dim, bias, rel_pos_bias or "
                             "attn_drop; leave those out and give embed_dim")  # fmt: skip
        self.scale = qk_scale or (width // num_heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.register_parameter("rpb", self._table() if has_table else None)
        self.attn_drop = nn.Dropout(attn_drop or 0.0)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(proj_drop)

    def _table(self) -> nn.Parameter:
        table = torch.empty(self.num_heads, *(2 * axis.kernel_size - 1 for axis in self.axes))
        return nn.Parameter(nn.init.trunc_normal_(table, std=0.02, a=-2.0, b=2.0))

    def forward(self, x: Tensor, **tuning: Any) -> Tensor:
        """Mixes a map (B, *spatial, C); NATTEN's tuning arguments are accepted, and ignored.

        Raises:
            ValueError: The map has another number of axes, or is smaller than ``kernel_size * dilation`` and was not
                asked to be padded.
        """
        check_tuning(tuning)
        if x.ndim != self.rank + 2:
            raise ValueError(f"x has shape {tuple(x.shape)}; it must be (B, *spatial, C) with {self.rank} spatial axes")
        size = x.shape[1:-1]
        x = self._padded(x)
        q, k, v = self.qkv(x).view(*x.shape[:-1], 3, self.num_heads, -1).unbind(-3)
        out = self._dropped(q, k, v) if self.training and self.attn_drop.p > 0 else self._fused(q, k, v)
        if out.shape[1:-2] != size:
            out = out[(slice(None), *(slice(n) for n in size))]
        return self.proj_drop(self.proj(out.flatten(-2)))

    def _padded(self, x: Tensor) -> Tensor:
        """The map with zeros appended to each axis that is shorter than a window: keys like any other, in 0.14-0.17."""
        missing = [max(axis.kernel_size * axis.dilation - n, 0)
                   for axis, n in zip(self.axes, x.shape[1:-1], strict=True)]  # fmt: skip
        if not any(missing):
            return x
        if not self.pads:
            raise ValueError(f"x has shape {tuple(x.shape)}, less than kernel_size={self.pattern.kernel_size} times "
                             f"dilation={self.pattern.dilation} along an axis; NATTEN 0.14 to 0.17 pads such maps: for "
                             "that give dim= instead of embed_dim=")  # fmt: skip
        return F.pad(x, [0, 0, *(amount for n in reversed(missing) for amount in (0, n))])

    def _fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        p = self.pattern
        out = neighborhood_attention(
            q, k, v, p.kernel_size, stride=p.stride, dilation=p.dilation, is_causal=p.causal, scale=self.scale,
            bias=self.rpb,
        )  # fmt: skip
        assert isinstance(out, Tensor), "no log-sum-exp was asked for"
        return out

    def _dropped(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention with dropout on its weights, which needs them."""
        p = self.pattern
        q, k, v = (x.movedim(-2, 1) for x in (q * self.scale, k, v))
        logits = neighborhood_qk(q, k, p.kernel_size, p.dilation, is_causal=p.causal, rpb=self.rpb)
        attn = self.attn_drop(logits.softmax(-1)).to(v.dtype)
        return neighborhood_av(attn, v, p.kernel_size, p.dilation, is_causal=p.causal).movedim(1, -2)

    def extra_repr(self) -> str:
        """What of the arguments the submodules don't show."""
        return f"num_heads={self.num_heads}, {self.pattern}, rel_pos_bias={self.rpb is not None}, pads={self.pads}"


class NeighborhoodAttention1D(_NeighborhoodAttention):
    """Neighborhood attention over sequences (B, L, C)."""

    rank = 1


class NeighborhoodAttention2D(_NeighborhoodAttention):
    """Neighborhood attention over maps (B, H, W, C)."""

    rank = 2


class NeighborhoodAttention3D(_NeighborhoodAttention):
    """Neighborhood attention over volumes (B, T, H, W, C)."""

    rank = 3
