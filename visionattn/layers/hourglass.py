# SPDX-License-Identifier: Apache-2.0
"""Residual units and the attention module made of them, a trunk and a mask from an hourglass; maps `(B, C, H, W)`."""

from collections.abc import Callable

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from .batch_norm import BatchNorm

Drop = Callable[[Tensor], Tensor]


def pool_down(x: Tensor) -> Tensor:
    """Largest value of every 3x3 pixels, every other pixel; windows begin on the map, and may end beyond it.

    A side of n pixels becomes n // 2, and one pixel remains one.
    """
    # A pixel beyond odd sides would be one window too much; a map of one pixel needs two more to be a window.
    rows, columns = (torch.sym_max(3 - side, 1) for side in x.shape[2:])
    return F.max_pool2d(F.pad(x, (0, columns, 0, rows), value=float("-inf")), 3, 2)


def resize_to(x: Tensor, like: Tensor) -> Tensor:
    """`x` at the size of another map, bilinearly with aligned corners."""
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)


class PreActivationUnit(nn.Module):
    """Residual unit of three convolutions that norms and activates what each of them reads.

    Args:
        dim: Channels of the map.
        out_dim: Channels of the result.
        width: Channels inside.
        stride: Stride of the 3x3 convolution.
        own_norm: Whether the unit norms and activates its input, which is given to it otherwise.
        groups: Not used; there, since both units take it.

    Paper: Identity Mappings in Deep Residual Networks, arXiv 1603.05027.
    """

    def __init__(
        self, dim: int, out_dim: int, width: int, stride: int = 1, own_norm: bool = True, groups: int = 1
    ) -> None:
        super().__init__()
        self.norm = BatchNorm(dim) if own_norm else None
        self.conv1, self.norm1 = nn.Conv2d(dim, width, 1, bias=False), BatchNorm(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), BatchNorm(width)
        self.conv3 = nn.Conv2d(width, out_dim, 1, bias=False)
        changes = stride > 1 or dim != out_dim
        self.proj = nn.Conv2d(dim, out_dim, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor, active: Tensor | None = None, drop: Drop | None = None) -> Tensor:
        """Maps `(B, dim, H, W)` to `(B, out_dim, H / stride, W / stride)`; `active` is the normed, activated input."""
        if self.norm is not None:
            active = F.relu(self.norm(x))
        out = self.conv2(F.relu(self.norm1(self.conv1(active))))
        out = self.conv3(F.relu(self.norm2(out)))
        kept = x if self.proj is None else self.proj(active)
        return kept + (out if drop is None else drop(out))


class GroupedUnit(nn.Module):
    """Residual unit of three convolutions, the second in groups, which norms what they return and activates the sum.

    Args:
        dim: Channels of the map.
        out_dim: Channels of the result.
        width: Half of the channels inside.
        stride: Stride of the 3x3 convolution.
        own_norm: Not used; there, since both units take it.
        groups: Groups of the 3x3 convolution.

    Paper: Aggregated Residual Transformations for Deep Neural Networks, arXiv 1611.05431.
    """

    def __init__(
        self, dim: int, out_dim: int, width: int, stride: int = 1, own_norm: bool = True, groups: int = 32
    ) -> None:
        super().__init__()
        width *= 2
        self.conv1, self.norm1 = nn.Conv2d(dim, width, 1, bias=False), BatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.norm2 = BatchNorm(width)
        self.conv3, self.norm3 = nn.Conv2d(width, out_dim, 1, bias=False), BatchNorm(out_dim)
        changes = stride > 1 or dim != out_dim
        self.proj = nn.Conv2d(dim, out_dim, 1, stride, bias=False) if changes else None
        self.proj_norm = BatchNorm(out_dim) if changes else None

    def forward(self, x: Tensor, active: Tensor | None = None, drop: Drop | None = None) -> Tensor:
        """Maps `(B, dim, H, W)` to `(B, out_dim, H / stride, W / stride)`; `active` is not used."""
        out = self.conv2(F.relu(self.norm1(self.conv1(x))))
        out = self.norm3(self.conv3(F.relu(self.norm2(out))))
        kept = x if self.proj is None or self.proj_norm is None else self.proj_norm(self.proj(x))
        return F.relu(kept + (out if drop is None else drop(out)))


UNITS: dict[str, type[nn.Module]] = {"pre_activation": PreActivationUnit, "grouped": GroupedUnit}


class HourglassMask(nn.Module):
    """Weights in (0, 1) for every pixel and channel: pooled, seen by residual units, and resized again.

    Args:
        dim: Channels of the map, four times those inside units.
        pools: How many times the map is pooled.
        unit: Kind of the units, one of `UNITS`.
        groups: Groups of grouped units.

    Raises:
        ValueError: If `pools` is less than 1.
    """

    def __init__(self, dim: int, pools: int, unit: str = "pre_activation", groups: int = 32) -> None:
        super().__init__()
        if pools < 1:
            raise ValueError(f"pools={pools} must be at least 1")

        def units(count: int) -> nn.ModuleList:
            return nn.ModuleList(UNITS[unit](dim, dim, dim // 4, groups=groups) for _ in range(count))

        self.down = nn.ModuleList(units(1 if i < pools - 1 else 2) for i in range(pools))
        self.skip, self.up = units(pools - 1), units(pools - 1)
        self.norm1 = BatchNorm(dim) if unit == "pre_activation" else None
        self.conv1, self.norm2 = nn.Conv2d(dim, dim, 1, bias=False), BatchNorm(dim)
        self.conv2 = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Weights `(B, C, H, W)` of a map of this shape, any H, W >= 1."""
        out, maps = x, []
        for units in self.down:
            out = pool_down(out)
            for unit in units:  # type: ignore[attr-defined]
                out = unit(out)
            maps.append(out)
        for i in reversed(range(len(self.up))):
            out = self.up[i](self.skip[i](maps[i]) + resize_to(out, maps[i]))
        out = resize_to(out, x)
        if self.norm1 is not None:
            out = F.relu(self.norm1(out))
        return torch.sigmoid(self.conv2(F.relu(self.norm2(self.conv1(out)))))


class AttentionModule(nn.Module):
    """Residual units weighed by a mask, added to themselves: `(1 + mask) * trunk`; then one more unit.

    Args:
        dim: Channels of the map, four times those inside units.
        pools: How many times the mask's hourglass pools.
        unit: Kind of the units, one of `UNITS`.
        groups: Groups of grouped units.
        drop_path: Probability that a sample skips the last unit's branch in training.

    Raises:
        ValueError: If `pools` is less than 1.

    Paper: Residual Attention Network for Image Classification, arXiv 1704.06904.
    """

    def __init__(
        self, dim: int, pools: int, unit: str = "pre_activation", groups: int = 32, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        make = UNITS[unit]
        self.trunk = nn.ModuleList(make(dim, dim, dim // 4, own_norm=i > 0, groups=groups) for i in range(3))
        self.mask = HourglassMask(dim, pools, unit, groups)
        self.unit = make(dim, dim, dim // 4, groups=groups)
        self.norm = BatchNorm(dim) if unit == "pre_activation" else None
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        """Maps `(B, C, H, W)` to the same shape; `active` is the normed, activated input of pre-activation units."""
        seen = self.trunk[0](x, active)
        out = self.trunk[2](self.trunk[1](seen))
        return self.unit(out * self.mask(seen) + out, None, self.drop_path)


class UnitBlock(nn.Module):
    """One residual unit as a block of a network.

    Args:
        dim: Channels of the map.
        out_dim: Channels of the result, four times those inside the unit.
        stride: Stride of the unit.
        unit: Kind of the unit, one of `UNITS`.
        groups: Groups of a grouped unit.
        drop_path: Probability that a sample skips the unit's branch in training.
        own_norm: Whether a pre-activation unit norms its input itself.
        out_norm: Whether the block holds the norm of what follows it.
    """

    def __init__(
        self, dim: int, out_dim: int, stride: int = 1, unit: str = "pre_activation", groups: int = 32,
        drop_path: float = 0.0, own_norm: bool = False, out_norm: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.unit = UNITS[unit](dim, out_dim, out_dim // 4, stride, own_norm, groups)
        self.norm = BatchNorm(out_dim) if out_norm and unit == "pre_activation" else None
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        """Maps `(B, dim, H, W)` to `(B, out_dim, H / stride, W / stride)`."""
        return self.unit(x, active, self.drop_path)
