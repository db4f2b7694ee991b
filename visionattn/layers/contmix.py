# SPDX-License-Identifier: Apache-2.0
"""Context-mixing dynamic convolution: large kernels made of what each pixel has to do with a pooled map."""

from typing import Any

import torch
from timm.layers import SqueezeExcite
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn
from torch.nn import functional as F

from visionattn.kernels import dynamic_convolution
from visionattn.kernels.dynamic_torch import window_pixels
from visionattn.kernels.pattern import is_symbolic

from .batch_norm import BatchNorm
from .checks import check_odd
from .pooling import average_cells
from .reparam import DilatedReparam


class TapBias(nn.Module):
    """Learned bias of every tap of a window, by where the tap lies from its pixel.

    Args:
        num_heads: Heads, each with a table.
        kernel_size: Side of the window.
    """

    def __init__(self, num_heads: int, kernel_size: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.rpb = nn.Parameter(torch.zeros(num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1))

    def no_weight_decay(self) -> set[str]:
        """Parameters that no recipe decays, besides vectors."""
        return {"rpb"}

    def forward(self, height: int, width: int) -> Tensor:
        """Biases `(H, W, heads, kernel_size ** 2)` of a map."""
        rows, columns = (self._offsets(side) for side in (height, width))
        table = self.rpb.index_select(1, rows.flatten()).index_select(2, columns.flatten())
        size = self.kernel_size
        return table.unflatten(2, (-1, size)).unflatten(1, (-1, size)).permute(1, 3, 0, 2, 4).flatten(3)

    def _offsets(self, side: int) -> Tensor:
        """Entry of the table for every tap `(side, kernel_size)` on one axis."""
        pixel = torch.arange(side, device=self.rpb.device)[:, None]
        return window_pixels(side, self.kernel_size, self.rpb) - pixel + self.kernel_size - 1


class _DynamicConvolution(nn.Module):
    """Two halves of the channels of `(B, C, H, W)`, each convolved by kernels of its own size."""

    def __init__(self, dim: int, num_heads: int, sides: tuple[int, int]) -> None:
        super().__init__()
        self.dim, self.num_heads, self.sides = dim, num_heads, sides

    def forward(self, v: Tensor, *kernels: Tensor) -> Tensor:
        """Output `(B, H, W, C)` by kernels `(B, H, W, heads, side ** 2)`."""
        values = v.contiguous().unflatten(1, (2, self.num_heads, -1)).permute(1, 0, 4, 5, 2, 3)
        parts = zip(kernels, values, self.sides, strict=True)
        halves = [dynamic_convolution(kernel.to(v.dtype), half, side) for kernel, half, side in parts]
        return torch.cat([half.contiguous().flatten(3) for half in halves], 3)

    def without_attention(self, v: Tensor) -> Tensor:
        """A map of the output's shape."""
        return v.permute(0, 2, 3, 1)

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates on one map."""
        return height * width * self.dim // 2 * sum(side**2 for side in self.sides)


class ContMix(nn.Module):
    """Every pixel convolves its window by kernels made of its affinity to the cells of a pooled map.

    Half of the channels gets a small kernel, half a large one; windows stay inside the map, as in neighborhood
    attention. A large static convolution is added, and a gate multiplies the result. Where the map is smaller than the
    large kernel, it is enlarged for the dynamic convolution and the result is averaged back.

    Args:
        dim: Channels of the map, those of the context among them.
        num_heads: Kernels of each size that a pixel has; divides half of the channels that are mixed.
        kernel_size: Side of the large kernels, one of `visionattn.layers.reparam.BRANCHES`.
        small_kernel_size: Side of the small kernels, odd, at most `kernel_size`.
        context_dim: How many of the channels, the last ones, are the context that the pooled map is made of; 0 makes it
            of all channels, which are all mixed too.
        grid: Cells of the pooled map on each axis.
        fused: Whether the static convolution's branches are merged; see `visionattn.layers.reparam.fuse`.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If a kernel's side, `context_dim`, `grid` or `num_heads` does not fit.

    Paper: OverLoCK, arXiv 2502.20087.
    """

    cost = "O(N)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int = 7,
        small_kernel_size: int = 5,
        context_dim: int = 0,
        grid: int = 7,
        fused: bool = False,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        check_odd("small_kernel_size", small_kernel_size)
        if small_kernel_size > kernel_size:
            raise ValueError(f"small_kernel_size={small_kernel_size} must be at most kernel_size={kernel_size}")
        if not 0 <= context_dim < dim:
            raise ValueError(f"context_dim={context_dim} must be at least 0 and less than dim={dim}")
        mixed = dim - context_dim
        if num_heads < 1 or mixed % (2 * num_heads):
            raise ValueError(f"num_heads={num_heads} must be a positive divisor of half of the {mixed} mixed channels")
        if grid < 1:
            raise ValueError(f"grid={grid} must be at least 1")
        self.num_heads, self.kernel_size, self.small_kernel_size = num_heads, kernel_size, small_kernel_size
        self.mixed, self.context_dim, self.grid = mixed, context_dim or dim, grid
        self.scale = (mixed // num_heads) ** -0.5
        self.fusion = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            BatchNorm(dim),
            nn.GELU(),
            nn.Conv2d(dim, mixed, 1),
            GlobalResponseNorm(mixed, channels_last=False),
        )
        self.gate = nn.Sequential(*_normed(mixed, mixed), nn.SiLU())
        self.lepe = nn.Sequential(DilatedReparam(mixed, kernel_size, fused), BatchNorm(mixed))
        self.query = _normed(mixed, mixed // 2)
        self.key = _normed(self.context_dim, mixed // 2)
        self.taps = nn.Linear(grid**2, small_kernel_size**2 + kernel_size**2)
        self.small_bias = TapBias(num_heads, small_kernel_size)
        self.large_bias = TapBias(num_heads, kernel_size)
        self.convolve = _DynamicConvolution(mixed, num_heads, (small_kernel_size, kernel_size))
        self.merge = _normed(mixed, mixed)
        self.se = SqueezeExcite(mixed, rd_channels=max(16, mixed // 8), act_layer=nn.GELU)
        self.proj = nn.Sequential(BatchNorm(mixed), nn.Conv2d(mixed, dim, 1))
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        x = x.permute(0, 3, 1, 2)
        v = self.fusion(x)
        gate, static = self.gate(v), self.lepe(v)
        out = self.merge(self._convolve(x, v).permute(0, 3, 1, 2))
        out = self.proj(gate * self.se(out + static))
        return self.proj_drop(out.permute(0, 2, 3, 1))

    def _convolve(self, x: Tensor, v: Tensor) -> Tensor:
        """The dynamic convolution `(B, H, W, C)` of values, by kernels made of `x`; both `(B, *, H, W)`."""
        size, enlarged = (v.shape[2], v.shape[3]), self._enlarged(v.shape[2], v.shape[3])
        is_free = is_symbolic(*size)
        if is_free or enlarged != size:  # a traced graph resizes in any case, to the same size where it need not
            x, v = (F.interpolate(t, enlarged, mode="bilinear", align_corners=False) for t in (x, v))
        out = self.convolve(v, *self._kernels(x))
        return average_cells(out, size) if is_free or enlarged != size else out

    def _enlarged(self, height: Any, width: Any) -> tuple[Any, Any]:
        """Sides of the map once its shorter side holds the large kernel."""
        size = self.kernel_size
        if is_symbolic(height, width):
            shorter = torch.sym_min(height, width)
            target = torch.sym_max(shorter, size)
            return _opaque(target * height // shorter, size), _opaque(target * width // shorter, size)
        if min(height, width) >= size:
            return height, width
        # Rounded as the reference does it, which loses a pixel of some whole quotients.
        if height < width:
            return size, max(size, int(size / height * width))
        return max(size, int(size / width * height)), size

    def _kernels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Small and large kernels `(B, H, W, heads, side ** 2)` of maps `(B, C, H, W)`."""
        height, width = x.shape[2:]
        context = average_cells(x[:, -self.context_dim :].permute(0, 2, 3, 1), (self.grid, self.grid))
        q = self.query(x[:, : self.mixed]) * self.scale
        k = self.key(context.permute(0, 3, 1, 2))
        q, k = (t.contiguous().unflatten(1, (self.num_heads, -1)).flatten(3) for t in (q, k))
        logits = self.taps(q.transpose(2, 3) @ k).unflatten(2, (height, width)).permute(0, 2, 3, 1, 4)
        small, large = logits.split((self.small_kernel_size**2, self.kernel_size**2), -1)
        small, large = small + self.small_bias(height, width), large + self.large_bias(height, width)
        return small.softmax(-1), large.softmax(-1)


def _opaque(side: Any, least: int) -> Any:
    """A symbolic side as a symbol of its own: reasoning about quotients would take a tracer minutes."""
    known = torch.scalar_tensor(side, dtype=torch.int64).item()
    torch._check(known >= least)
    return known


def _normed(channels: int, out: int) -> nn.Sequential:
    """1x1 convolution and batch norm."""
    return nn.Sequential(nn.Conv2d(channels, out, 1, bias=False), BatchNorm(out))
