# SPDX-License-Identifier: Apache-2.0
"""Convolutions longer than the map, gated: a token mixer of global reach without attention."""

from torch import Tensor, nn
from torch.nn import functional as F

from visionattn.kernels.pattern import is_symbolic

from .checks import check_odd


class OversizedConvolution(nn.Module):
    """One half of the channels convolved along whole columns and rows, and locally; it multiplies the other half.

    A kernel of twice the map's length, less one, reaches from every pixel to every other on its axis; the zeros around
    the map tell positions apart.

    Args:
        dim: Channels of the map.
        num_heads: Not used; there, since all mixers take it.
        kernel_size: Length of the depth-wise convolutions along each axis, odd.
        local_kernel_size: Side of the local depth-wise convolution, odd.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If a kernel size is even.

    Paper: ParCNetV2: Oversized Kernel with Enhanced Attention, arXiv 2211.07157.
    """

    cost = "O(N√N)"

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        kernel_size: int = 27,
        local_kernel_size: int = 7,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        for name, size in (("kernel_size", kernel_size), ("local_kernel_size", local_kernel_size)):
            check_odd(name, size)
        self.fc1 = nn.Linear(dim, 2 * dim)
        self.columns = _depthwise(dim, (kernel_size, 1))
        self.rows = _depthwise(dim, (1, kernel_size))
        self.local = _depthwise(dim, (local_kernel_size, local_kernel_size))
        self.fc2 = nn.Linear(dim, dim, bias=False)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        kept, spread = self.fc1(x).chunk(2, -1)
        spread = F.gelu(spread).permute(0, 3, 1, 2)
        spread = _within_reach(self.rows, _within_reach(self.columns, spread)) + self.local(spread)
        return self.proj_drop(self.fc2(kept * spread.permute(0, 2, 3, 1)))


def _depthwise(dim: int, size: tuple[int, int]) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, size, padding=(size[0] // 2, size[1] // 2), groups=dim, bias=False)


def _within_reach(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution without the taps that see nothing but zeros from every pixel."""
    sides = x.shape[2:]
    if is_symbolic(*sides):
        return conv(x)
    spare = [max(size // 2 - (side - 1), 0) for size, side in zip(conv.kernel_size, sides, strict=True)]
    weight = conv.weight[:, :, spare[0] : conv.kernel_size[0] - spare[0], spare[1] : conv.kernel_size[1] - spare[1]]
    return F.conv2d(x, weight, padding=[size // 2 for size in weight.shape[2:]], groups=conv.groups)
