# SPDX-License-Identifier: Apache-2.0
"""timm: Swin Transformer, Swin Transformer V2 (both of its versions) and halo attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.kernels import halo_attention
from visionattn.kernels.pattern import is_symbolic

from ._adapter import Accelerated, Adapter
from ._windows import Project, attend, bias_table, cosine, is_ragged, split_packed


class SwinBlock(Accelerated):
    """`SwinTransformerBlock`."""

    def _attn(self: Any, x: Tensor) -> Tensor:
        if self.training and _dropout(self) > 0:
            return self._library_class._attn(self, x)
        attn = self.attn
        bias = bias_table(attn.relative_position_bias_table, self.window_size)
        return _mix(self, x, partial(_project, attn), bias, attn.scale)


class SwinV2Block(Accelerated):
    """`SwinTransformerV2Block`."""

    def _attn(self: Any, x: Tensor) -> Tensor:
        if self.training and _dropout(self) > 0:
            return self._library_class._attn(self, x)
        attn = self.attn
        rows = attn.cpb_mlp(attn.relative_coords_table).view(-1, attn.num_heads)
        return _mix(self, x, partial(_project_v2, attn), bias_table(16 * torch.sigmoid(rows), self.window_size), 1.0)


class SwinV2CrBlock(Accelerated):
    """`SwinTransformerV2CrBlock`."""

    def _shifted_window_attn(self: Any, x: Tensor) -> Tensor:
        if self.training and _dropout_cr(self) > 0:
            return self._library_class._shifted_window_attn(self, x)
        return _mix(self, x, partial(_project_cr, self.attn), _table_cr(self.attn), 1.0)


class HaloAttention(Accelerated):
    """`HaloAttn`."""

    def forward(self: Any, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if not is_symbolic(height, width) and (height % self.block_size or width % self.block_size):
            return self._library_class.forward(self, x)  # which says what it needs
        q = _heads_last(self.q(x), self.num_heads)
        k, v = _heads_last(self.kv(x), self.num_heads).split([self.dim_head_qk, self.dim_head_v], -1)
        out = halo_attention(
            q,
            k,
            v,
            self.block_size,
            self.halo_size,
            query_stride=self.block_stride,
            rel_tables=(self.pos_embed.height_rel, self.pos_embed.width_rel),
            scale_rel=self.scale_pos_embed,
            scale=self.scale,
        )
        # Contiguous, as timm's is: a batch norm follows, and strides decide what its backward does.
        return self.pool(out.flatten(3).permute(0, 3, 1, 2).contiguous())  # type: ignore[union-attr]


def _dropout(block: Any) -> float:
    return block.attn.attn_drop.p


def _dropout_cr(block: Any) -> float:
    """Dropout of the weights, or of the network that makes the bias: it draws anew for every pair of pixels."""
    mlp = block.attn.meta_mlp
    return max(block.attn.attn_drop.p, mlp.drop1.p, mlp.drop2.p)


def _mix(block: Any, x: Tensor, project: Project, bias: Tensor, scale: float) -> Tensor:
    """A block's attention branch: `(B, H, W, C)` to `(B, H, W, C)`."""
    window, shift = block.window_size, block.shift_size
    run = partial(attend, project, window=window, shift=shift, bias=bias, scale=scale)
    out = _rolled_first(run, x, window, shift) if any(shift) and is_ragged(x, window) else run(x)
    return block.attn.proj_drop(block.attn.proj(out))


def _rolled_first(
    run: Callable[[Tensor], Tensor], x: Tensor, window: tuple[int, int], shift: tuple[int, int]
) -> Tensor:
    """Attention on a map that is padded after it was rolled, as timm has it; `run` rolls what it is given."""
    height, width = x.shape[1:3]
    back = (-shift[0], -shift[1])
    padded = F.pad(x.roll(back, (1, 2)), (0, 0, 0, -width % window[1], 0, -height % window[0]))
    out = run(padded.roll(shift, (1, 2))).roll(back, (1, 2))
    return out[:, :height, :width].roll(shift, (1, 2))


def _project(attn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return split_packed(attn.qkv(x), attn.num_heads)


def _project_v2(attn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if attn.q_bias is None:
        qkv = attn.qkv(x)
    else:
        bias = torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
        qkv = attn.qkv(x) + bias if attn.qkv_bias_separate else F.linear(x, attn.qkv.weight, bias)
    return cosine(*split_packed(qkv, attn.num_heads), attn.logit_scale)


def _project_cr(attn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return cosine(*_project(attn, x), attn.logit_scale)


def _table_cr(attn: Any) -> Tensor:
    """Bias table `(heads, 2 * height - 1, 2 * width - 1)`: timm's network, on one pair of pixels for each offset."""
    height, width = attn.window_size
    coordinates = attn.relative_coordinates_log.view(height, width, height, width, 2)
    rows, columns = (torch.arange(1 - side, side, device=coordinates.device) for side in (height, width))
    y, x = rows[:, None], columns
    pairs = coordinates[(-y).clamp(min=0), (-x).clamp(min=0), y.clamp(min=0), x.clamp(min=0)]
    return attn.meta_mlp(pairs).permute(2, 0, 1)


def _heads_last(x: Tensor, heads: int) -> Tensor:
    """`(B, H, W, heads, D)` of `(B, heads * D, H, W)`, a view."""
    return x.unflatten(1, (heads, -1)).permute(0, 3, 4, 1, 2)


PROJECTIONS = ("attn.num_heads", "attn.qkv", "attn.attn_drop.p", "attn.proj", "attn.proj_drop")
COSINE = (*PROJECTIONS, "attn.logit_scale")

ADAPTERS = (
    Adapter(
        "timm.models.swin_transformer.SwinTransformerBlock",
        SwinBlock,
        _dropout,
        parts=("window_size", "shift_size", "attn.relative_position_bias_table", "attn.scale", *PROJECTIONS),
        methods=("_attn",),
        inner={"attn": "timm.models.swin_transformer.WindowAttention"},
    ),
    Adapter(
        "timm.models.swin_transformer_v2.SwinTransformerV2Block",
        SwinV2Block,
        _dropout,
        parts=("window_size", "shift_size", *COSINE, "attn.cpb_mlp", "attn.relative_coords_table"),
        methods=("_attn",),
        inner={"attn": "timm.models.swin_transformer_v2.WindowAttention"},
    ),
    Adapter(
        "timm.models.swin_transformer_v2_cr.SwinTransformerV2CrBlock",
        SwinV2CrBlock,
        _dropout_cr,
        parts=("window_size", "shift_size", *COSINE, "attn.meta_mlp", "attn.relative_coordinates_log"),
        methods=("_shifted_window_attn",),
        inner={"attn": "timm.models.swin_transformer_v2_cr.WindowMultiHeadAttention"},
    ),
    Adapter(
        "timm.layers.halo_attn.HaloAttn",
        HaloAttention,
        dropout=lambda module: 0.0,
        parts=("q", "kv", "pool", "block_size", "block_stride", "pos_embed.height_rel", "pos_embed.width_rel"),
        inner={"pos_embed": "timm.layers.halo_attn.PosEmbedRel"},
        op="halo_attention",
    ),
)
