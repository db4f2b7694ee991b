# SPDX-License-Identifier: Apache-2.0
"""Attention to points that a network moves to where the image is interesting."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor, nn

from visionattn.kernels import deformable_attention, sample_points
from visionattn.kernels.deformable import GRIDS
from visionattn.kernels.deformable_torch import axis_points
from visionattn.kernels.pattern import is_symbolic

from .checks import check_heads
from .init import init_table
from .padding import pad_to_patch, pad_to_size

BOUNDS = ("clamp", "tanh", None)
POSITIONS = ("table", "mlp", "dense", "conv", None)
HIDDEN = 32


def sampling_points(
    offsets: Tensor, grid: str = "corners", offset_range: float | None = None, bound: str | None = "clamp"
) -> Tensor:
    """Points of a regular grid, moved by offsets.

    Args:
        offsets: What a network says, (B, groups, rows, columns, 2), (y, x).
        grid: Where the points of n along an axis start: "centers", i -> 2(i + 1/2) / n - 1; or "corners",
            i -> 2(i + 1/2) / (n - 1) - 1, the last one beyond the border.
        offset_range: The tanh of an offset counts, times this many cells of the grid; None for the offset itself.
        bound: How points are kept inside the map: "clamp", "tanh", or None for not at all.

    Returns:
        Points (B, groups, rows * columns, 2), (y, x), -1 to 1 inside the map, in float32 at least.
    """
    offsets = offsets if offsets.dtype == torch.float64 else offsets.float()
    moved = []
    for axis, offset in enumerate(offsets.unbind(-1)):
        side = offset.shape[2 + axis]
        if offset_range is not None:
            offset = offset_range * offset.tanh() * _cell(side, grid, offset)
        start = _regular(side, grid, bound, offset)
        moved.append(offset + (start[:, None] if axis == 0 else start))
    points = torch.stack(moved, -1).flatten(2, 3)
    if bound == "clamp":
        return points.clamp(-1, 1)
    return points.tanh() if bound == "tanh" else points


def _regular(side: int, grid: str, bound: str | None, like: Tensor) -> Tensor:
    """Coordinates (side,) of an axis of the grid."""
    cells: Any = side if grid == "centers" else side - 1
    if bound is None:
        cells = torch.sym_max(cells, 1)  # else a single point starts at infinity, and bounds put it on the border
    return 2 * (torch.arange(side, dtype=like.dtype, device=like.device) + 0.5) / cells - 1


def _cell(side: int, grid: str, like: Tensor) -> Tensor:
    """Unit of bounded offsets; in float32 whatever the weights are, as the references have it."""
    cells: Any = side if grid == "centers" else torch.sym_max(side - 1, 1)
    unit = torch.ones((), device=like.device) / cells
    return unit.to(like.dtype)


class DeformableAttention(nn.Module):
    """Every pixel attends to the same few points of the map, which a network moves to where they matter.

    A regular grid of points is moved by offsets, which a depth-wise convolution of the queries and a linear layer
    give, for every group of channels apart; there the map is read bilinearly and projected to keys and values. The
    defaults are DAT++'s; DAT has `grid="centers"`, `offset_range=2` and `bound=None`. Weights of one grid mean nothing
    on the other, though their shapes agree; an entry of the state dict, `on_centers` or `on_corners`, keeps them apart.

    Args:
        dim: Channels of the map.
        num_heads: Attention heads.
        num_groups: Groups of channels with offsets of their own; a divisor of `num_heads`.
        stride: Pixels from one point of the grid to the next.
        kernel_size: Side of the convolution that gives offsets.
        pad_offsets: Whether that convolution sees zeros around the map, half its kernel.
        grid: Where queries and points start, "corners" or "centers", see `deformable_attention`, `sampling_points`.
        offset_range: Offsets are at most this many cells of the grid; None for no limit.
        bound: How points are kept inside the map: "clamp", "tanh", or None for not at all.
        position: Bias of the logits by position: "table", interpolated at the way from point to query; "mlp", a network
            of that way on a logarithmic scale; "dense", an entry for each pixel and point, resized to other maps;
            "conv", a depth-wise convolution of the queries added to the output instead; None for none.
        map_size: Side or `(height, width)` of the map that tables are made for; other maps are taken too.
        sample: "points"; or "mean" for means of `stride` x `stride` pixels instead, without a position bias: the
            offset network is then idle, and frozen.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If an argument is out of range.

    Paper: Vision Transformer with Deformable Attention, arXiv 2201.00520; DAT++, arXiv 2309.01430.
    """

    cost = "O(N²)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_groups: int = 1,
        stride: int = 1,
        kernel_size: int = 5,
        pad_offsets: bool = True,
        grid: str = "corners",
        offset_range: float | None = None,
        bound: str | None = "clamp",
        position: str | None = "table",
        map_size: int | tuple[int, int] = 14,
        sample: str = "points",
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        if num_groups < 1 or num_heads % num_groups:
            raise ValueError(f"num_groups={num_groups} must be a positive divisor of num_heads={num_heads}")
        if min(stride, kernel_size, *to_2tuple(map_size)) < 1:
            raise ValueError(f"stride={stride}, kernel_size={kernel_size} and map_size={map_size} must be positive")
        if offset_range is not None and offset_range < 0:
            raise ValueError(f"offset_range={offset_range} must not be negative; None sets no limit")
        for name, value, allowed in (
            ("grid", grid, GRIDS),
            ("bound", bound, BOUNDS),
            ("position", position, POSITIONS),
            ("sample", sample, ("points", "mean")),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}")
        self.dim, self.num_heads, self.num_groups, self.stride = dim, num_heads, num_groups, stride
        self.grid, self.offset_range, self.bound, self.sample = grid, offset_range, bound, sample
        self.kernel_size, self.padding = kernel_size, kernel_size // 2 if pad_offsets else 0
        self.scale = (dim // num_heads) ** -0.5 if qk_scale is None else qk_scale
        width = dim // num_groups
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.offset_conv = nn.Conv2d(width, width, kernel_size, stride, self.padding, groups=width)
        self.offset_norm = nn.LayerNorm(width)
        self.offset_proj = nn.Linear(width, 2, bias=False)
        if sample == "mean":
            for layer in (self.offset_conv, self.offset_norm, self.offset_proj):
                layer.requires_grad_(False)
        self.position = position if sample == "points" else None
        self.rpb: nn.Parameter | None = None
        self.position_conv: nn.Conv2d | None = None
        self.cpb_mlp: nn.Sequential | None = None
        self._add_position(to_2tuple(map_size))
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.register_buffer(f"on_{grid}", torch.zeros((), dtype=torch.bool))

    def _add_position(self, size: tuple[int, int]) -> None:
        height, width = size
        if self.position == "table":
            self.rpb = nn.Parameter(torch.empty(self.num_heads, 2 * height - 1, 2 * width - 1))
        elif self.position == "dense":
            points = (height // self.stride) * (width // self.stride)
            self.rpb = nn.Parameter(torch.empty(self.num_heads, height * width, points))
        elif self.position == "conv":
            self.position_conv = nn.Conv2d(self.dim, self.dim, 3, padding=1, groups=self.dim)
        elif self.position == "mlp":
            last = nn.Linear(HIDDEN, self.num_heads // self.num_groups, bias=False)
            self.cpb_mlp = nn.Sequential(nn.Linear(2, HIDDEN), nn.ReLU(), last)
        if self.rpb is not None:
            init_table(self.rpb, 0.01)

    def no_weight_decay(self) -> set[str]:
        """Parameters that no recipe decays, besides vectors: what knows positions."""
        positions = ("rpb", "position_conv.", "cpb_mlp.")
        return {name for name, p in self.named_parameters() if name.startswith(positions) and p.ndim > 1}

    def points(self, q: Tensor) -> Tensor:
        """Points (B, groups, N, 2) of queries `(B, H, W, C)`."""
        if self.padding == 0:
            q = pad_to_size(q, self.kernel_size, self.kernel_size)
        maps = q.unflatten(-1, (self.num_groups, -1)).permute(0, 3, 4, 1, 2).contiguous().flatten(0, 1)
        hidden = self.offset_norm(self.offset_conv(maps).permute(0, 2, 3, 1))
        offsets = self.offset_proj(F.gelu(hidden)).unflatten(0, (-1, self.num_groups))
        return sampling_points(offsets, self.grid, self.offset_range, self.bound)

    def project_in(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries `(B, H, W, heads, D)`, keys and values `(B, N, heads, D)`, and the points where they were read."""
        q = self.q(x)
        if self.sample == "mean":
            points = None
            maps = pad_to_patch(x, self.stride).permute(0, 3, 1, 2)
            samples = F.avg_pool2d(maps, self.stride).permute(0, 2, 3, 1).flatten(1, 2)
        else:
            points = self.points(q)
            samples = sample_points(x, points)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)) for t in (q, self.k(samples), self.v(samples)))
        return q, k, v, points

    def project_out(self, x: Tensor) -> Tensor:
        """Joins the heads of `(B, H, W, heads, D)` and projects them."""
        return self.proj_drop(self.proj(x.flatten(3)))

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        q, k, v, points = self.project_in(x)
        if points is None:
            out = self._attend(q, k, v, None)
        elif self.position == "mlp":
            out = self._attend(q, k, v, self._network_bias(points, q.shape[1], q.shape[2]))
        elif self.position == "dense":
            out = self._attend(q, k, v, self._dense_bias(q.shape[1] * q.shape[2], k.shape[1]))
        else:
            out = deformable_attention(q, k, v, points, self.rpb, grid=self.grid, scale=self.scale)
        if self.position_conv is not None:
            out = out + self.position_conv(q.flatten(3).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).reshape(out.shape)
        return self.project_out(out)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """Attention with a bias (1 or B, heads, H * W, N) that exists as a whole."""
        logits = torch.einsum("bthd,bnhd->bhtn", q.flatten(1, 2) * self.scale, k)
        logits = logits if bias is None else logits + bias.to(logits.dtype)
        return torch.einsum("bhtn,bnhd->bthd", logits.softmax(-1), v).unflatten(1, q.shape[1:3])

    def _network_bias(self, points: Tensor, height: int, width: int) -> Tensor:
        rows, columns = (axis_points(side, self.grid, points) for side in (height, width))
        at = torch.stack([rows[:, None].expand(height, width), columns.expand(height, width)], -1).flatten(0, 1)
        way = 4 * (at[:, None] - points[:, :, None])  # (B, groups, H * W, N, 2)
        network = self.cpb_mlp
        assert network is not None
        logarithmic = way.sign() * torch.log2(way.abs() + 1) / 3
        bias = network(logarithmic.to(next(network.parameters()).dtype))
        return bias.permute(0, 1, 4, 2, 3).flatten(1, 2)

    def _dense_bias(self, queries: int, points: int) -> Tensor:
        table: Tensor = self.rpb  # type: ignore[assignment]
        if not is_symbolic(queries, points) and table.shape[1:] == (queries, points):
            return table[None]
        return F.interpolate(table[None], size=(queries, points), mode="bilinear", align_corners=True)

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of the two attention products on one map; samples, bias and softmax are left out."""
        rows, columns = (self._grid_side(side) for side in (height, width))
        return 2 * height * width * rows * columns * self.dim

    def _grid_side(self, side: int) -> int:
        if self.sample == "mean":
            return max(side // self.stride, 1)
        return max(side + 2 * self.padding - self.kernel_size, 0) // self.stride + 1
