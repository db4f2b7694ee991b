# SPDX-License-Identifier: Apache-2.0
"""Focused linear attention: linear attention whose features a power sharpens."""

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor, nn

from visionattn.kernels import focused_linear_attention
from visionattn.kernels.pattern import is_symbolic

from .attention import resize_table
from .checks import check_odd
from .linear_mixer import LinearMixer, depthwise


class FocusedLinearAttention(LinearMixer):
    """Every pixel attends to all pixels by products of sharpened positive features, at a cost linear in the pixels.

    Keys have learned positions. A depth-wise convolution of the values, with the same kernels in all heads, is added.

    Args:
        dim: Channels of the map; a multiple of `num_heads`.
        num_heads: Attention heads.
        power: How much features are sharpened, positive.
        kernel_size: Side of the convolution, odd.
        map_size: Side or `(height, width)` of the map that positions are made for; on other maps they are resized
            bicubically.
        local_values: Whether a 3x3 convolution of the values with kernels of each channel's own is added too.
        reduction: As in `LinearMixer`.
        qkv_bias: Whether projections to queries, keys and values have a bias.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If an argument is out of range.

    Paper: FLatten Transformer: Vision Transformer using Focused Linear Attention, arXiv 2308.00442.
    """

    cost = "O(N)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        power: float = 3,
        kernel_size: int = 5,
        map_size: int | tuple[int, int] = 14,
        local_values: bool = False,
        reduction: int | None = None,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, reduction, qkv_bias, None, proj_drop)
        size = to_2tuple(map_size)
        if power <= 0:
            raise ValueError(f"power={power} must be positive")
        check_odd("kernel_size", kernel_size)
        if min(size) < 1:
            raise ValueError(f"map_size={size} must be positive")
        self.power = power
        head_dim = dim // num_heads
        self.temperature = nn.Parameter(torch.zeros(dim))  # before the softplus that makes it positive
        self.key_positions = nn.Parameter(torch.zeros(dim, *self.key_size(*size)))
        self.local = nn.Conv2d(head_dim, head_dim, kernel_size, padding=kernel_size // 2, groups=head_dim)
        self.lepe = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1, groups=dim) for _ in range(int(local_values)))

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        return self.project_out(self.attend(*self.project_in(x)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention and convolutions of projected maps `(B, H, W, heads, D)`."""
        heads = q.shape[3:]
        k = k + self._positions((k.shape[1], k.shape[2])).to(k.dtype).unflatten(2, heads)
        temperature = F.softplus(self.temperature).unflatten(0, heads)
        out = focused_linear_attention(q, k, v, temperature=temperature, power=self.power)
        values = v if self.reduction in (None, 1) else _spread_in_rows(v, (q.shape[1], q.shape[2]))
        for conv in (self.local, *self.lepe):
            out = out + depthwise(values, conv)
        return out

    def _positions(self, size: tuple[int, int]) -> Tensor:
        """Positions `(h, w, C)` of the keys' map."""
        table = self.key_positions
        if is_symbolic(*size) or size != (table.shape[1], table.shape[2]):
            table = resize_table(table, size)
        return table.permute(1, 2, 0)

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of the attention products and convolutions on one map."""
        rows, columns = self.key_size(height, width)
        pixels, head_dim = height * width, self.dim // self.num_heads
        taps = self.local.kernel_size[0] ** 2 + 9 * len(self.lepe)
        return (pixels * (head_dim + 1 + taps) + rows * columns * head_dim) * self.dim


def _spread_in_rows(v: Tensor, size: tuple[int, int]) -> Tensor:
    """Map `(B, h, w, heads, D)` resized to `size` linearly along its pixels in a row, as the reference has it."""
    rows = v.flatten(3).flatten(1, 2).transpose(1, 2)
    spread = F.interpolate(rows, size=size[0] * size[1], mode="linear", align_corners=False)
    return spread.transpose(1, 2).unflatten(1, size).unflatten(3, v.shape[3:])
