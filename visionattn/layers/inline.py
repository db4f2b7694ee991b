# SPDX-License-Identifier: Apache-2.0
"""InLine attention: linear attention with injective weights, and a local part with kernels of each sample's own."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.kernels import inline_attention

from .linear_mixer import LinearMixer, depthwise, join_class, split_class


class InlineAttention(LinearMixer):
    """Every pixel attends to all pixels by weights that are linear in the logits and sum to one.

    To that a 3x3 convolution of the values is added, whose kernels are computed from the average pixel of the sample.
    Nothing depends on the size of the map.

    Args:
        dim: Channels of the map; a multiple of `num_heads`.
        num_heads: Attention heads.
        local_values: Whether a 3x3 convolution of the values with learned kernels is added too.
        takes_input: Whether kernels are computed from what the block read, before its norm; `forward` takes that too.
        reduction: None for a packed projection of queries, keys and values; 1 projects queries by themselves.
        qkv_bias: Whether projections to queries, keys and values have a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.
        class_token: Whether tokens `(B, 1 + H * W, C)` are mixed, the class token first: it is no part of convolutions.

    Raises:
        ValueError: If an argument is out of range, or options exclude each other.

    Paper: Bridging the Divide: Reconsidering Softmax and Linear Attention, arXiv 2412.06590.
    """

    cost = "O(N)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        local_values: bool = False,
        takes_input: bool = False,
        reduction: int | None = None,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        class_token: bool = False,
    ) -> None:
        super().__init__(dim, num_heads, reduction, qkv_bias, qk_scale, proj_drop, class_token)
        if reduction not in (None, 1):
            raise ValueError(f"reduction={reduction} must be None or 1: convolutions need the values of all pixels")
        if class_token and (local_values or takes_input):
            raise ValueError("class_token=True takes neither local_values=True nor takes_input=True")
        self.takes_input = takes_input
        self.taps = nn.Sequential(
            nn.Conv1d(dim, dim, 1, groups=num_heads), nn.GELU(), nn.Conv1d(dim, 9 * dim, 1, groups=num_heads)
        )
        self.lepe = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1, groups=dim) for _ in range(int(local_values)))

    def forward(self, x: Tensor, source: Tensor | tuple[int, int] | None = None) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1; with a class token `(B, 1 + H * W, C)`.

        Args:
            x: Map or tokens.
            source: The block's input where `takes_input`, the size of the map where there is a class token.
        """
        q, k, v = self.project_in(x)
        out = self.attend_tokens(q, k, v)
        if self.class_token:
            (token, pixels), (_, values) = split_class(out, source), split_class(v, source)
            return self.project_out(join_class(token, pixels + self.local(values, x)))
        out = out + self.local(v, source if self.takes_input else x)
        for conv in self.lepe:
            out = out + depthwise(v, conv)
        return self.project_out(out)

    def attend_tokens(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of projected tokens or maps, without convolutions."""
        return inline_attention(q, k, v, scale=self.scale)

    def local(self, v: Tensor, source: Tensor) -> Tensor:
        """Convolution of a map `(B, H, W, heads, D)` by kernels computed from the mean of `source`."""
        mean = source.flatten(1, -2).mean(1)
        taps = self.taps(mean[:, :, None]).unflatten(1, (self.dim, 9)).flatten(2)  # (B, C, 9)
        return convolve_samples(v.flatten(3), taps).unflatten(3, v.shape[3:])

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of the attention products and convolutions on one map."""
        head_dim = self.dim // self.num_heads
        pixels = height * width + int(self.class_token)
        kernels = 10 * self.dim * head_dim
        return pixels * self.dim * (2 * head_dim + 9 * (1 + len(self.lepe))) + kernels


def convolve_samples(x: Tensor, taps: Tensor) -> Tensor:
    """Depth-wise 3x3 convolution of a map `(B, H, W, C)` by `(B, C, 9)` kernels, zeros around it."""
    height, width = x.shape[1:3]
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    out = torch.zeros_like(x)
    # A grouped convolution of B * C groups is slow on most devices, and no exporter takes a free number of groups.
    for tap in range(9):
        row, column = divmod(tap, 3)
        shifted = padded[:, row : row + height, column : column + width]
        out = out + shifted * taps[:, None, None, :, tap].to(x.dtype)
    return out
