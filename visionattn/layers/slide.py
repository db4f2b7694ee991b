# SPDX-License-Identifier: Apache-2.0
"""Local attention whose neighbours are shifted maps."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 3


class SlideAttention(nn.Module):
    """Every pixel attends to its 3x3 neighbours, read by a depth-wise convolution that shifts keys and values.

    To each shifted map another convolution, learned, is added, so that the neighbours need not lie on the grid. A
    quarter of the channels attends.

    Args:
        dim: Channels of the map; a multiple of four times `num_heads`.
        num_heads: Attention heads.
        qk_scale: Factor on the logits; None means `(dim // num_heads) ** -0.5`.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If `num_heads` does not divide a quarter of `dim`.

    Paper: Slide-Transformer, arXiv 2304.04237, as DAT++ has it.
    """

    cost = "O(N)"

    def __init__(self, dim: int, num_heads: int, qk_scale: float | None = None, proj_drop: float = 0.0) -> None:
        super().__init__()
        if num_heads < 1 or dim % (4 * num_heads):
            raise ValueError(f"num_heads={num_heads} must be a positive divisor of a quarter of dim={dim}")
        self.dim, self.num_heads, self.width = dim, num_heads, dim // 4
        self.scale = (dim // num_heads) ** -0.5 if qk_scale is None else qk_scale
        self.qkv = nn.Linear(dim, 3 * self.width)
        head_dim = self.width // num_heads
        self.shift_bias = nn.Parameter(torch.zeros(SIDE**2 * head_dim))
        self.conv = nn.Conv2d(head_dim, SIDE**2 * head_dim, SIDE, padding=SIDE // 2, groups=head_dim)
        self.rpb = nn.Parameter(torch.zeros(num_heads, SIDE, SIDE))
        self.proj = nn.Linear(self.width, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def no_weight_decay(self) -> set[str]:
        """Parameters that no recipe decays, besides vectors."""
        return {"rpb"}

    def project_in(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `(B, H, W, heads, D)`; the channels of a head stand together."""
        q, k, v = self.qkv(x).unflatten(-1, (self.num_heads, 3, -1)).unbind(4)
        return q, k, v

    def project_out(self, x: Tensor) -> Tensor:
        """Joins the heads of `(B, H, W, heads, D)` and projects them."""
        return self.proj_drop(self.proj(x.flatten(3)))

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        q, k, v = self.project_in(x)
        keys, values = self._neighbours(k), self._neighbours(v)  # (B, heads, D, 9, H, W)
        keys = keys + self.rpb.flatten(1)[:, None, :, None, None]
        logits = torch.einsum("bhwnd,bndkhw->bnkhw", q * self.scale, keys)
        return self.project_out(torch.einsum("bnkhw,bndkhw->bhwnd", logits.softmax(2), values))

    def _neighbours(self, x: Tensor) -> Tensor:
        """The 3x3 neighbours of each pixel of `(B, H, W, heads, D)`, zero beyond the map, moved as was learned."""
        head_dim = x.shape[4]
        shifts = torch.eye(SIDE**2, dtype=self.conv.weight.dtype, device=x.device).view(-1, 1, SIDE, SIDE)
        kernel = self.conv.weight + shifts.repeat(head_dim, 1, 1, 1)
        maps = x.permute(0, 3, 4, 1, 2).contiguous().flatten(0, 1)
        moved = F.conv2d(maps, kernel, self.conv.bias + self.shift_bias, padding=SIDE // 2, groups=head_dim)
        return moved.unflatten(1, (head_dim, -1)).unflatten(0, (-1, self.num_heads))

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of convolutions and attention products on one map, softmax left out."""
        return height * width * self.width * SIDE**2 * (2 * SIDE**2 + 2)
