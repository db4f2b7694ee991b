# SPDX-License-Identifier: Apache-2.0
"""Token mixers made of convolutions: maps `(B, H, W, C)` in, maps of the same shape out."""

import torch
from timm.layers import get_act_layer
from torch import Tensor, nn

from .checks import check_odd


class GatedConvolution(nn.Module):
    """Mamba's block without its state space model.

    Expands the channels, convolves a part of them depth-wise, multiplies all by a gate and projects back.
    It is mixer and MLP in one: its blocks need no MLP.

    Args:
        dim: Channels of the map.
        num_heads: Not used; there, since all mixers take it.
        expansion_ratio: Width of the gate over `dim`, cut off to a whole number.
        conv_ratio: Convolved channels over `dim`, at most `expansion_ratio`.
        kernel_size: Side of the convolution, odd.
        act: Activation of the gate, as timm names it.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If `conv_ratio` is out of range or `kernel_size` is even.

    Paper: MambaOut: Do We Really Need Mamba for Vision?, arXiv 2405.07992.
    """

    cost = "O(N)"

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        expansion_ratio: float = 8 / 3,
        conv_ratio: float = 1.0,
        kernel_size: int = 7,
        act: str = "gelu",
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        hidden, convolved = int(expansion_ratio * dim), int(conv_ratio * dim)
        if not 1 <= convolved <= hidden:
            raise ValueError(
                f"conv_ratio={conv_ratio} makes {convolved} of {dim} channels; it must make 1 to {hidden}, which "
                f"expansion_ratio={expansion_ratio} gives"
            )
        check_odd("kernel_size", kernel_size)
        self.split = (hidden, hidden - convolved, convolved)
        self.fc1 = nn.Linear(dim, 2 * hidden)
        self.conv = nn.Conv2d(convolved, convolved, kernel_size, padding=kernel_size // 2, groups=convolved)
        self.act = get_act_layer(act)()
        self.fc2 = nn.Linear(hidden, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        gate, kept, convolved = self.fc1(x).split(self.split, -1)
        convolved = self.conv(convolved.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.proj_drop(self.fc2(self.act(gate) * torch.cat([kept, convolved], -1)))


class DepthwiseConvolution(nn.Module):
    """Depth-wise convolution alone, the mixer of ConvNeXt.

    Args:
        dim: Channels of the map.
        num_heads: Not used; there, since all mixers take it.
        kernel_size: Side of the convolution, odd.
        proj_drop: Not used; nothing is projected.

    Raises:
        ValueError: If `kernel_size` is even.

    Paper: A ConvNet for the 2020s, arXiv 2201.03545.
    """

    cost = "O(N)"

    def __init__(self, dim: int, num_heads: int = 1, kernel_size: int = 7, proj_drop: float = 0.0) -> None:
        super().__init__()
        check_odd("kernel_size", kernel_size)
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SeparableConvolution(nn.Module):
    """Linear, depth-wise convolution, linear: a token mixer without attention.

    Args:
        dim: Channels of the map.
        num_heads: Not used; there, since all mixers take it.
        kernel_size: Side of the convolution, odd.
        proj_drop: Dropout after the last layer.

    Raises:
        ValueError: If `kernel_size` is even.
    """

    cost = "O(N)"

    def __init__(self, dim: int, num_heads: int = 1, kernel_size: int = 5, proj_drop: float = 0.0) -> None:
        super().__init__()
        check_odd("kernel_size", kernel_size)
        self.fc1 = nn.Linear(dim, dim)
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.fc2 = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        x = self.conv(self.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.proj_drop(self.fc2(x))


class Pooling(nn.Module):
    """Mean of a pixel's neighbours less the pixel itself: a token mixer without weights.

    Args:
        dim: Not used; there, since all mixers take it.
        num_heads: Not used either.
        kernel_size: Side of the neighbourhood, odd; pixels outside the map do not count.
        proj_drop: Dropout of the result.

    Raises:
        ValueError: If `kernel_size` is even.

    Paper: MetaFormer Is Actually What You Need for Vision, arXiv 2111.11418.
    """

    cost = "O(N)"

    def __init__(self, dim: int, num_heads: int = 1, kernel_size: int = 3, proj_drop: float = 0.0) -> None:
        super().__init__()
        check_odd("kernel_size", kernel_size)
        self.pool = nn.AvgPool2d(kernel_size, 1, kernel_size // 2, count_include_pad=False)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        return self.proj_drop(self.pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) - x)
