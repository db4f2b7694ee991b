# SPDX-License-Identifier: Apache-2.0
"""MLPs of the blocks, by name: `(dim, hidden, drop=...)` makes one that maps `(B, H, W, C)` to the same shape."""

from collections.abc import Callable
from functools import partial

from timm.layers import GluMlp, Mlp
from torch import Tensor, nn

from .gramian import GroupedMlp
from .partial import PartialMlp


class DepthwiseMlp(nn.Module):
    """MLP with a depth-wise 3x3 convolution between its layers, which also tells positions apart.

    Args:
        dim: Channels of the map.
        hidden: Channels inside.
        drop: Dropout after the activation and after the last layer.
        relu: Whether there is a ReLU before the convolution.
        residual: Whether the convolution is added to what it reads.

    Paper: PVT v2, arXiv 2106.13797; residual: DAT++, arXiv 2309.01430.
    """

    def __init__(self, dim: int, hidden: int, drop: float = 0.0, relu: bool = False, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual
        self.fc1 = nn.Linear(dim, hidden)
        self.relu = nn.ReLU() if relu else nn.Identity()
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = nn.GELU()
        self.drop = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, H, W, C)` to the same shape."""
        x = self.relu(self.fc1(x)).permute(0, 3, 1, 2)
        x = x + self.conv(x) if self.residual else self.conv(x)
        x = self.act(x.permute(0, 2, 3, 1))
        return self.drop(self.fc2(self.drop(x)))


class ConvGluMlp(nn.Module):
    """Gated MLP whose gate has a depth-wise 3x3 convolution: one half of the hidden channels gates the other.

    Args:
        dim: Channels of the map.
        hidden: Channels inside that an MLP without a gate would have; two thirds of them cost as much with one.
        drop: Dropout after the product and after the last layer.

    Paper: TransNeXt, arXiv 2311.17132.
    """

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        width = int(2 * hidden / 3)
        self.fc1 = nn.Linear(dim, 2 * width)
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.act = nn.GELU()
        self.drop = nn.Dropout(drop)
        self.fc2 = nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, H, W, C)` to the same shape."""
        gate, value = self.fc1(x).chunk(2, -1)
        gate = self.conv(gate.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.drop(self.fc2(self.drop(self.act(gate) * value)))


MLPS: dict[str, Callable[..., nn.Module]] = {
    "mlp": Mlp,
    "gated": partial(GluMlp, act_layer=nn.GELU, bias=(True, False)),  # the second half of the hidden channels gates
    "conv_glu": ConvGluMlp,
    "grouped_2": GroupedMlp,
    "depthwise": DepthwiseMlp,
    "partial": PartialMlp,
    "partial_relu": partial(PartialMlp, act="relu"),
    "partial_gated": partial(PartialMlp, spatial_gate=True),
    "partial_relu_gated": partial(PartialMlp, act="relu", spatial_gate=True),
    "plain_gated": partial(PartialMlp, norm=False, spatial_gate=True),
    "depthwise_relu": partial(DepthwiseMlp, relu=True),
    "depthwise_residual": partial(DepthwiseMlp, residual=True),
}
