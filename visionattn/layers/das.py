# SPDX-License-Identifier: Apache-2.0
"""DAS: a gate of every channel and position that looks where it wants to, by one deformable convolution."""

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

KERNEL = 3


class DAS(nn.Module):
    """Multiplies a map by sigmoid of a deformable convolution of a few of its channels.

    Written from the paper's description, since the authors' code is not at hand; where it leaves a choice, kernels are
    3x3, the convolution is modulated, offsets and modulation start at 0 and 1/2 and come from the reduced map, and the
    last norm is over the channels of each pixel.

    Args:
        channels: Channels of the map.
        ratio: Reduced channels over `channels`, the paper's alpha.

    Raises:
        ValueError: If `ratio` is not in (0, 1].

    Paper: DAS: A Deformable Attention to Capture Salient Information in CNNs, arXiv 2311.12091.
    """

    def __init__(self, channels: int, ratio: float = 0.2) -> None:
        super().__init__()
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio={ratio} must be more than 0 and at most 1")
        hidden = max(1, round(ratio * channels))
        self.depthwise = nn.Conv2d(channels, channels, KERNEL, padding=KERNEL // 2, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, hidden, 1, bias=False)
        self.offset = nn.Conv2d(hidden, 3 * KERNEL**2, KERNEL, padding=KERNEL // 2)
        self.deform = nn.Conv2d(hidden, channels, KERNEL)
        self.norm = LayerNorm2d(channels, eps=1e-5)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to one of the same shape."""
        reduced = F.gelu(instance_norm(self.pointwise(self.depthwise(x))))
        offset, mask = self.offset(reduced).split((2 * KERNEL**2, KERNEL**2), 1)
        gate = deform_conv(reduced, offset, mask.sigmoid(), self.deform)
        return x * self.norm(gate).sigmoid()


def instance_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Each channel of each map `(B, C, H, W)` at mean 0 and variance 1, a single pixel at 0."""
    variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    return (x - mean) * (variance + eps).rsqrt()


def deform_conv(x: Tensor, offset: Tensor, mask: Tensor, conv: nn.Conv2d) -> Tensor:
    """Modulated deformable convolution of odd kernel, stride 1 and same size, in plain, exportable operations.

    Args:
        x: `(B, C, H, W)`; zero beyond its borders.
        offset: `(B, 2 K, H, W)` for the K taps of the kernel, row by row: vertical, then horizontal, in pixels.
        mask: Factors `(B, K, H, W)`.
        conv: Weights `(C', C, k, k)` and bias.
    """
    height, width = x.shape[2:]
    side = conv.kernel_size[0]
    taps = torch.arange(side, device=x.device) - side // 2
    dy, dx = offset.unflatten(1, (-1, 2)).unbind(2)  # (B, K, H, W)
    y = dy + taps.repeat_interleave(side)[:, None, None] + torch.arange(height, device=x.device)[:, None]
    x_position = dx + taps.repeat(side)[:, None, None] + torch.arange(width, device=x.device)
    # A grid counts from -1 to 1, from border to border.
    grid = torch.stack([(2 * x_position + 1) / width - 1, (2 * y + 1) / height - 1], -1).to(x.dtype)
    samples = F.grid_sample(x, grid.flatten(1, 2), align_corners=False).unflatten(2, (-1, height))  # (B, C, K, H, W)
    columns = (samples * mask[:, None]).flatten(1, 2)
    return F.conv2d(columns, conv.weight.flatten(1)[:, :, None, None], conv.bias)
