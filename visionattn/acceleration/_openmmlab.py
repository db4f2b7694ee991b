# SPDX-License-Identifier: Apache-2.0
"""mmdet and mmseg: the Swin Transformer backbone, which both carry."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from ._adapter import Accelerated, Adapter
from ._windows import attend, bias_table, split_packed


class ShiftWindows(Accelerated):
    """`ShiftWindowMSA`."""

    def forward(self: Any, query: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """`(B, H * W, C)` to the same shape; `hw_shape` is `(H, W)`."""
        if self.training and _dropout(self) > 0:
            return self._library_class.forward(self, query, hw_shape)
        inner, window = self.w_msa, (self.window_size, self.window_size)
        out = attend(
            partial(_project, inner),
            query.unflatten(1, tuple(hw_shape)),
            window,
            (self.shift_size, self.shift_size),
            bias_table(inner.relative_position_bias_table, window),
            inner.scale,
        )
        return self.drop(inner.proj_drop(inner.proj(out.flatten(1, 2))))


def _dropout(module: Any) -> float:
    return module.w_msa.attn_drop.p


def _project(inner: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return split_packed(inner.qkv(x), inner.num_heads)


PARTS = ("num_heads", "scale", "relative_position_bias_table", "qkv", "attn_drop.p", "proj", "proj_drop")

ADAPTERS = tuple(
    Adapter(
        f"{library}.models.backbones.swin.ShiftWindowMSA",
        ShiftWindows,
        _dropout,
        parts=("window_size", "shift_size", "drop", *(f"w_msa.{part}" for part in PARTS)),
        inner={"w_msa": f"{library}.models.backbones.swin.WindowMSA"},
    )
    for library in ("mmdet", "mmseg")
)
