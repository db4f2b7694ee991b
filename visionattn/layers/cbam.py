# SPDX-License-Identifier: Apache-2.0
"""CBAM and BAM: gates of channels and positions, one after the other and in parallel."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .checks import check_odd
from .names import pick
from .padding import crop_to_size


def _root_of_squares(x: Tensor) -> Tensor:
    return x.square().sum(-1).sqrt()


# Values `(..., L)` to one value; the maximum has one winner where values tie.
POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda x: x.mean(-1),
    "max": lambda x: x.max(-1).values,
    "lp": _root_of_squares,
    "lse": lambda x: x.logsumexp(-1),
}


class ChannelGate(nn.Module):
    """Factor of every channel, from pooled channels through one small perceptron.

    Args:
        channels: Channels of the map.
        reduction: Channels over hidden width.
        pools: Names of the poolings, of "avg", "max", "lp" and "lse"; the perceptron's outputs are added up.

    Raises:
        ValueError: If a pooling is unknown, there is none, or nothing is left of the hidden width.
    """

    def __init__(self, channels: int, reduction: int = 16, pools: Sequence[str] = ("avg", "max")) -> None:
        super().__init__()
        if len(pools) == 0:
            raise ValueError(f"pools={pools} must name at least one of {', '.join(POOLS)}")
        self.pools = tuple(pools)
        for name in self.pools:
            pick("pooling", name, POOLS)
        hidden = reduced(channels, reduction)
        self.fc1 = nn.Linear(channels, hidden)
        self.act = nn.ReLU()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to factors `(B, C, 1, 1)` in (0, 1)."""
        pixels = x.flatten(2)
        logits = [self.fc2(self.act(self.fc1(POOLS[name](pixels)))) for name in self.pools]
        return torch.stack(logits).sum(0).sigmoid()[:, :, None, None]


class PlaneGate(nn.Module):
    """Factor of every point of a plane, from maximum and mean over the third axis through one convolution.

    Args:
        kernel_size: Side of the kernel, odd.

    Raises:
        ValueError: If `kernel_size` is even or not positive.
    """

    def __init__(self, kernel_size: int = 7) -> None:
        super().__init__()
        check_odd("kernel_size", kernel_size)
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x: Tensor, dim: int = 1) -> Tensor:
        """`(B, P, Q, R)` to factors `(B, Q, R)` in (0, 1), or those of the two axes left where another is reduced."""
        plane = torch.stack([x.max(dim).values, x.mean(dim)], 1)
        return self.bn(self.conv(plane)).sigmoid().squeeze(1)


class CBAM(nn.Module):
    """Gates the channels of a map, then its positions.

    Args:
        channels: Channels of the map.
        reduction: Channels over hidden width of the channel gate.
        kernel_size: Side of the spatial gate's kernel, odd.
        pools: Poolings of the channel gate: "avg", "max", "lp" (root of the sum of squares), "lse" (log of the sum of
            exponentials).
        spatial: Whether positions are gated too.

    Raises:
        ValueError: If an argument is none of these.

    Paper: CBAM: Convolutional Block Attention Module, arXiv 1807.06521.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        kernel_size: int = 7,
        pools: Sequence[str] = ("avg", "max"),
        spatial: bool = True,
    ) -> None:
        super().__init__()
        self.channel = ChannelGate(channels, reduction, pools)
        self.spatial = PlaneGate(kernel_size) if spatial else None

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to one of the same shape."""
        x = x * self.channel(x)
        return x if self.spatial is None else x * self.spatial(x)[:, None]


class BAM(nn.Module):
    """Multiplies a map by 1 + sigmoid of the product of a channel part and a spatial part.

    Args:
        channels: Channels of the map.
        reduction: Channels over width of both parts.
        dilation: Dilation of the spatial part's 3x3 convolutions.
        square_pool: Let the channel part see the leftmost H columns only where H < W < 2H, as the published code does;
            else it sees the whole map.

    Raises:
        ValueError: If nothing is left of the reduced width.

    Paper: BAM: Bottleneck Attention Module, arXiv 1807.06514; the published code multiplies where the paper adds.
    """

    def __init__(self, channels: int, reduction: int = 16, dilation: int = 4, square_pool: bool = False) -> None:
        super().__init__()
        hidden = reduced(channels, reduction)
        self.square_pool = square_pool
        self.channel = nn.Sequential(
            nn.Linear(channels, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )
        self.spatial = nn.Sequential(
            _conv_norm_relu(channels, hidden, 1, 1),
            _conv_norm_relu(hidden, hidden, 3, dilation),
            _conv_norm_relu(hidden, hidden, 3, dilation),
            nn.Conv2d(hidden, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to one of the same shape; training needs batches of two or more."""
        seen = _left_square(x) if self.square_pool else x
        logits = self.channel(seen.mean((2, 3)))[:, :, None, None] * self.spatial(x)
        return x * (1 + logits.sigmoid())


def reduced(channels: int, reduction: int) -> int:
    """Hidden width of a gate: `channels // reduction`.

    Raises:
        ValueError: If that is not positive.
    """
    if not 1 <= reduction <= channels:
        raise ValueError(f"reduction={reduction} must lie in 1..{channels}, the channels of the map")
    return channels // reduction


def _conv_norm_relu(channels: int, out: int, kernel_size: int, dilation: int) -> nn.Sequential:
    padding = kernel_size // 2 * dilation
    conv = nn.Conv2d(channels, out, kernel_size, padding=padding, dilation=dilation)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU())


def _left_square(x: Tensor) -> Tensor:
    """Leftmost H columns of a map with H < W < 2H, else all of them."""
    height, width = x.shape[2:]
    # By arithmetic, since sizes may be symbols: 0 where width // height is 1, else 1.
    is_other = torch.sym_min(abs(width // height - 1), 1)
    columns = height + (width - height) * is_other
    return crop_to_size(x.permute(0, 2, 3, 1), height, columns).permute(0, 3, 1, 2)
