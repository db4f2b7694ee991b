# SPDX-License-Identifier: Apache-2.0
"""Attention whose heads are divided: some see details nearby, the others the whole map, averaged."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.kernels import window_attention

from .attention import output_of
from .checks import check_heads
from .padding import pad_to_multiple


class HiLoAttention(nn.Module):
    """Hi-Fi heads attend inside small windows, Lo-Fi heads to the averages of all windows.

    A map that windows do not divide is zero-padded; the padding takes part, as in the reference. Each group of heads
    has its own output projection, and no layer joins the two.

    Args:
        dim: Channels of the map; a multiple of `num_heads`.
        num_heads: Attention heads.
        window_size: Side of a window; 1 makes all heads attend to every pixel.
        alpha: Share of the Lo-Fi heads, whose number is cut off to a whole one.
        qkv_bias: Whether projections to queries, keys and values have a bias.
        proj_drop: Dropout after the output projections.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, `alpha` is not in [0, 1], or the window not positive.

    Paper: Fast Vision Transformers with HiLo Attention, arXiv 2205.13213.
    """

    cost = "O(N²)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 2,
        alpha: float = 0.9,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha} must be from 0 to 1")
        if window_size < 1:
            raise ValueError(f"window_size={window_size} must be at least 1")
        self.window_size = window_size
        self.low_heads = num_heads if window_size == 1 else int(num_heads * alpha)
        self.high_heads = num_heads - self.low_heads
        self.head_dim = dim // num_heads
        high, low = self.high_heads * self.head_dim, self.low_heads * self.head_dim
        if high:
            self.high_qkv = nn.Linear(dim, 3 * high, bias=qkv_bias)
            self.high_proj = nn.Linear(high, high)
        if low:
            self.low_q = nn.Linear(dim, low, bias=qkv_bias)
            self.low_kv = nn.Linear(dim, 2 * low, bias=qkv_bias)
            self.low_proj = nn.Linear(low, low)
        self.proj_drop = nn.Dropout(proj_drop)

    def project_in(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None, tuple[Tensor, Tensor] | None]:
        """Queries `(B, H, W, heads, D)`, Hi-Fi heads first; keys and values of the Hi-Fi and of the Lo-Fi heads."""
        queries: list[Tensor] = []
        details = overview = None
        if self.high_heads:
            q, *details = self.high_qkv(x).unflatten(-1, (3, self.high_heads, self.head_dim)).unbind(3)
            queries.append(q)
        if self.low_heads:
            queries.append(self.low_q(x).unflatten(-1, (self.low_heads, self.head_dim)))
            overview = self.low_kv(self._averages(x)).unflatten(-1, (2, self.low_heads, self.head_dim)).unbind(2)
        return torch.cat(queries, 3), details, overview

    def project_out(self, x: Tensor) -> Tensor:
        """Joins the heads of `(B, H, W, heads, D)`, each group by its own projection."""
        details, overview = (part.flatten(3) for part in x.split([self.high_heads, self.low_heads], 3))
        parts = [self.high_proj(details)] if self.high_heads else []
        parts += [self.low_proj(overview)] if self.low_heads else []
        return self.proj_drop(torch.cat(parts, -1))

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        q, details, overview = self.project_in(x)
        high, low = q.split([self.high_heads, self.low_heads], 3)
        parts = [] if details is None else [self._in_windows(high, *details)]
        parts += [] if overview is None else [self._in_all(low, *overview)]
        return self.project_out(torch.cat(parts, 3))

    def _in_windows(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        pads = (None, None)
        if self.high_qkv.bias is not None:
            # The padding is zero before the projection: what is left of it is the bias.
            pads = self.high_qkv.bias.to(k.dtype).view(3, self.high_heads, self.head_dim)[1:].unbind(0)
        return output_of(window_attention(q, k, v, self.window_size, pad_k=pads[0], pad_v=pads[1]))

    def _in_all(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q.flatten(1, 2), k, v)))
        return out.transpose(1, 2).unflatten(1, q.shape[1:3])

    def _averages(self, x: Tensor) -> Tensor:
        """Averages of the windows, `(B, n, C)`."""
        if self.window_size == 1:
            return x.flatten(1, 2)
        x = pad_to_multiple(x, self.window_size).permute(0, 3, 1, 2)
        return F.avg_pool2d(x, self.window_size).flatten(2).transpose(1, 2)

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of the two attention products on one map, softmax left out."""
        rows, columns = -(-height // self.window_size), -(-width // self.window_size)
        details = rows * columns * self.window_size**4 * self.high_heads
        overview = height * width * rows * columns * self.low_heads
        return 2 * (details + overview) * self.head_dim
