# SPDX-License-Identifier: Apache-2.0
"""Token mixers made of attention: maps `(B, H, W, C)` in, maps of the same shape out."""

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor, nn

from visionattn.kernels import neighborhood_attention, window_attention
from visionattn.kernels.pattern import is_symbolic

from .checks import check_heads
from .init import init_table
from .padding import crop_to_size, pad_to_size


class RelativeAttention(nn.Module):
    """What the attention mixers share: packed qkv, output projection, scale and a relative position bias table.

    Args:
        dim: Channels of the map; a multiple of `num_heads`.
        num_heads: Attention heads.
        extent: `(height, width)` of the keys that one query can see; the table is `(heads, 2*height-1, 2*width-1)`,
            indexed by key position minus query position. None for no table.
        qkv_bias: Whether the qkv projection has a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, or an extent is not positive.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        extent: tuple[int, int] | None,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        if extent is not None and min(extent) < 1:
            raise ValueError(f"kernel, window or map size {extent} must be positive")
        self.dim = dim
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5 if qk_scale is None else qk_scale
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.rpb: nn.Parameter | None = None
        if extent is not None:
            self.rpb = nn.Parameter(torch.empty(num_heads, 2 * extent[0] - 1, 2 * extent[1] - 1))
            init_table(self.rpb)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def no_weight_decay(self) -> set[str]:
        """Parameters that no recipe decays, besides vectors."""
        return set() if self.rpb is None else {"rpb"}

    def project_in(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views q, k, v `(B, H, W, heads, D)` of one packed projection."""
        batch, height, width, channels = x.shape
        qkv = self.qkv(x).view(batch, height, width, 3, self.num_heads, channels // self.num_heads)
        q, k, v = qkv.unbind(3)
        return q, k, v

    def project_out(self, x: Tensor) -> Tensor:
        """Joins the heads of `(B, H, W, heads, D)` and projects them."""
        return self.proj_drop(self.proj(x.flatten(3)))


def output_of(result: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """What an op returned, without the log-sum-exp that it may have returned too."""
    return result if isinstance(result, Tensor) else result[0]


class NeighborhoodAttention(RelativeAttention):
    """Each pixel attends to the `kernel_size` x `kernel_size` pixels nearest to it, `dilation` apart.

    A map smaller than `kernel_size * dilation` is zero-padded before the qkv projection; the padded pixels are real
    keys, as in the reference.

    Args:
        dim: Channels of the map.
        num_heads: Attention heads.
        kernel_size: Keys per axis.
        dilation: Distance of neighbouring keys, in pixels.
        qkv_bias: Whether the qkv projection has a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.

    Paper: Neighborhood Attention Transformer, arXiv 2204.07143; dilated: arXiv 2209.15001.
    """

    cost = "O(N)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int = 7,
        dilation: int = 1,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
    ) -> None:
        if dilation < 1:
            raise ValueError(f"dilation={dilation} must be at least 1")
        super().__init__(dim, num_heads, (kernel_size, kernel_size), qkv_bias, qk_scale, proj_drop)
        self.kernel_size = kernel_size
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        _, height, width, _ = x.shape
        reach = self.kernel_size * self.dilation
        q, k, v = self.project_in(pad_to_size(x, reach, reach))
        out = neighborhood_attention(q, k, v, self.kernel_size, dilation=self.dilation, scale=self.scale, bias=self.rpb)
        return self.project_out(crop_to_size(output_of(out), height, width))

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of the two attention products on one map, bias and softmax left out."""
        reach = self.kernel_size * self.dilation
        return 2 * max(height, reach) * max(width, reach) * self.kernel_size**2 * self.dim


class WindowAttention(RelativeAttention):
    """Attention inside the windows of a regular grid, which may be shifted cyclically.

    Args:
        dim: Channels of the map.
        num_heads: Attention heads.
        window_size: Side or `(height, width)` of a window.
        shift: Pixels that the grid is shifted by.
        shift_small_maps: Shift even a map that one window covers along an axis. The classification models do not,
            the dense-prediction backbones do.
        qkv_bias: Whether the qkv projection has a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.
        relative_bias: Whether logits have a bias by relative position.
        mask_two_sided_padding: Hide the tokens that fill up the last windows from all others where the map is filled
            up along both axes, and only there, as the Twins segmentation backbone does.

    Paper: Swin Transformer, arXiv 2103.14030.
    """

    cost = "O(N)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int | tuple[int, int] = 7,
        shift: int = 0,
        shift_small_maps: bool = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        relative_bias: bool = True,
        mask_two_sided_padding: bool = False,
    ) -> None:
        window = to_2tuple(window_size)
        if min(window) < 1:
            raise ValueError(f"window_size={window} must be positive")
        super().__init__(dim, num_heads, window if relative_bias else None, qkv_bias, qk_scale, proj_drop)
        if not 0 <= shift < min(window):
            raise ValueError(f"shift={shift} must be at least 0 and less than the window size {window}")
        self.window_size: tuple[int, int] = window
        self.shift = shift
        self.shift_small_maps = shift_small_maps
        self.mask_two_sided_padding = mask_two_sided_padding

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        q, k, v = self.project_in(x)
        pad_k, pad_v = self.padding(k.dtype)
        if self.mask_two_sided_padding:
            q, k, pad_k = self._mask_padding(q, k, pad_k)
        out = window_attention(
            q,
            k,
            v,
            self.window_size,
            shift=self._shift_on(x.shape[1], x.shape[2]),
            scale=self.scale,
            bias=self.position_bias(),
            pad_k=pad_k,
            pad_v=pad_v,
        )
        return self.project_out(output_of(out))

    def position_bias(self) -> Tensor | None:
        """Table `(heads, 2*height-1, 2*width-1)` added to the logits, by key position minus query position."""
        return self.rpb

    def padding(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """Key and value `(heads, D)` of the tokens that fill up the last windows; None for zeros."""
        if self.qkv.bias is None:
            return None, None
        # The reference pads the normed map before qkv: what is left of a padded token is the projection's bias.
        _, pad_k, pad_v = self.qkv.bias.to(dtype).view(3, self.num_heads, -1).unbind(0)
        return pad_k, pad_v

    def _mask_padding(self, q: Tensor, k: Tensor, pad_k: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and padding key with one more channel, in which the padding loses 1000 on every logit."""
        height, width = q.shape[1:3]
        rows, columns = (-n % side for n, side in zip((height, width), self.window_size, strict=True))
        both = torch.sym_min(rows, 1) * torch.sym_min(columns, 1)
        if pad_k is None:
            pad_k = k.new_zeros(self.num_heads, k.shape[-1])
        hidden = k.new_full((self.num_heads, 1), -1000 / self.scale) * both
        return F.pad(q, (0, 1), value=1.0), F.pad(k, (0, 1)), torch.cat([pad_k, hidden], -1)

    def _shift_on(self, height: int, width: int) -> int:
        if self.shift == 0 or self.shift_small_maps:
            return self.shift
        if is_symbolic(height, width):  # the same rule without a comparison, which would tie a trace to one answer
            spare = torch.sym_min(height - self.window_size[0], width - self.window_size[1])
            return self.shift * torch.sym_min(torch.sym_max(spare, 0), 1)
        return 0 if height <= self.window_size[0] or width <= self.window_size[1] else self.shift

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of the two attention products on one map, bias and softmax left out."""
        rows, columns = self.window_size
        padded = -(-height // rows) * rows * -(-width // columns) * columns
        return 2 * padded * rows * columns * self.dim


class GlobalAttention(RelativeAttention):
    """Every pixel attends to every pixel, with a relative position bias.

    Args:
        dim: Channels of the map.
        num_heads: Attention heads.
        map_size: Side or `(height, width)` of the map that the bias table is made for; on another map the table is
            resized bicubically.
        qkv_bias: Whether the qkv projection has a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.
    """

    cost = "O(N²)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        map_size: int | tuple[int, int] = 14,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
    ) -> None:
        self_size = to_2tuple(map_size)
        super().__init__(dim, num_heads, self_size, qkv_bias, qk_scale, proj_drop)
        self.map_size: tuple[int, int] = self_size

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        height, width = x.shape[1:3]
        bias: Tensor = self.rpb
        if is_symbolic(height, width) or (height, width) != self.map_size:
            bias = resize_table(bias, (2 * height - 1, 2 * width - 1))
        # A neighbourhood as large as the map is the map, for every query.
        out = neighborhood_attention(*self.project_in(x), (height, width), scale=self.scale, bias=bias)
        return self.project_out(output_of(out))

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of the two attention products on one map, bias and softmax left out."""
        return 2 * (height * width) ** 2 * self.dim


def resize_line(table: Tensor, length: int) -> Tensor:
    """Table `(..., n)` resized linearly along its last axis to `length`, in float32 at least."""
    if not is_symbolic(length) and table.shape[-1] == length:
        return table
    wide = table if table.dtype == torch.float64 else table.float()
    rows = F.interpolate(wide.reshape(1, -1, table.shape[-1]), size=length, mode="linear", align_corners=False)
    return rows.reshape(*table.shape[:-1], length).to(table.dtype)


def resize_table(table: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Channels-first table `(..., h, w)` resized to `size`, bicubically or as `mode` says, in float32 at least."""
    wide = table if table.dtype == torch.float64 else table.float()
    planes = wide.reshape(1, -1, *table.shape[-2:])
    resized = F.interpolate(planes, size=size, mode=mode, align_corners=False)
    return resized.reshape(*table.shape[:-2], *size).to(table.dtype)
