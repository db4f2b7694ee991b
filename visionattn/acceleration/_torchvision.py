# SPDX-License-Identifier: Apache-2.0
"""torchvision: Swin Transformer and Swin Transformer V2."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from ._adapter import Accelerated, Adapter
from ._windows import attend, bias_table, cosine, split_packed


class ShiftedWindows(Accelerated):
    """`ShiftedWindowAttention`."""

    def forward(self: Any, x: Tensor) -> Tensor:
        if self.training and _dropout(self) > 0:
            return self._library_class.forward(self, x)
        return _mix(self, x, self.relative_position_bias_table, self.qkv.bias)


class ShiftedWindowsV2(Accelerated):
    """`ShiftedWindowAttentionV2`."""

    def forward(self: Any, x: Tensor) -> Tensor:
        if self.training and _dropout(self) > 0:
            return self._library_class.forward(self, x)
        rows = 16 * torch.sigmoid(self.cpb_mlp(self.relative_coords_table).flatten(0, -2))
        bias = self.qkv.bias
        if bias is not None:  # keys have none, whatever the parameter holds
            q_bias, k_bias, v_bias = bias.chunk(3)
            bias = torch.cat((q_bias, torch.zeros_like(k_bias), v_bias))
        return _mix(self, x, rows, bias, self.logit_scale)


def _dropout(module: Any) -> float:
    return module.attention_dropout


def _mix(module: Any, x: Tensor, rows: Tensor, qkv_bias: Tensor | None, logit_scale: Tensor | None = None) -> Tensor:
    window, shift = tuple(module.window_size), tuple(module.shift_size)
    out = attend_shifted(x, module.qkv.weight, qkv_bias, rows, module.num_heads, window, shift, logit_scale)
    return F.dropout(F.linear(out, module.proj.weight, module.proj.bias), module.dropout, module.training)


@torch.fx.wrap  # torchvision's own function is: models are traced for features, as detectors do
def attend_shifted(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    rows: Tensor,
    heads: int,
    window: tuple[int, int],
    shift: tuple[int, int],
    logit_scale: Tensor | None,
) -> Tensor:
    """Attention in shifted windows, of weights as torchvision keeps them.

    Args:
        x: Map `(B, H, W, C)`.
        qkv_weight: `(3 * C, C)`.
        qkv_bias: `(3 * C,)` or None.
        rows: Position bias `(rows, heads)` by query minus key.
        heads: Attention heads.
        window: Height and width of a window.
        shift: Rows and columns that the grid is shifted by; an axis that one window covers is not shifted.
        logit_scale: Of the cosine attention of V2; None for scaled dot products.

    Returns:
        `(B, H, W, C)`, before the output projection.
    """
    height, width = x.shape[1:3]
    needed = (0 if height <= window[0] else shift[0], 0 if width <= window[1] else shift[1])
    project = partial(_project, qkv_weight, qkv_bias, heads, logit_scale)
    return attend(project, x, window, needed, bias_table(rows, window), None if logit_scale is None else 1.0)


def _project(
    weight: Tensor, bias: Tensor | None, heads: int, logit_scale: Tensor | None, x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = split_packed(F.linear(x, weight, bias), heads)
    return (q, k, v) if logit_scale is None else cosine(q, k, v, logit_scale)


PARTS = ("window_size", "shift_size", "num_heads", "attention_dropout", "dropout", "qkv", "proj")

ADAPTERS = (
    Adapter(
        "torchvision.models.swin_transformer.ShiftedWindowAttentionV2",
        ShiftedWindowsV2,
        _dropout,
        parts=(*PARTS, "logit_scale", "cpb_mlp", "relative_coords_table"),
    ),
    Adapter(
        "torchvision.models.swin_transformer.ShiftedWindowAttention",
        ShiftedWindows,
        _dropout,
        parts=(*PARTS, "relative_position_bias_table"),
    ),
)
