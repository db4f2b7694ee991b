# SPDX-License-Identifier: Apache-2.0
"""Triplet attention: the tensor is gated from its three sides."""

from torch import Tensor, nn

from .cbam import PlaneGate


class TripletAttention(nn.Module):
    """Multiplies a map by the mean of three gates, one for each pair of its axes.

    Each gate is a convolution over the plane of two axes of maximum and mean over the third; over channels too, so
    that their order matters. Broadcasting the gates saves the permuted copies of the map.

    Args:
        channels: Channels of the map; any number goes, since no weight depends on it.
        kernel_size: Side of the kernels, odd.
        spatial: Whether there is the gate of (height, width) beside those of channels.

    Raises:
        ValueError: If `kernel_size` is even or not positive.

    Paper: Rotate to Attend: Convolutional Triplet Attention Module, arXiv 2010.03045.
    """

    def __init__(self, channels: int | None = None, kernel_size: int = 7, spatial: bool = True) -> None:
        super().__init__()
        self.channel_width = PlaneGate(kernel_size)
        self.height_channel = PlaneGate(kernel_size)
        self.spatial = PlaneGate(kernel_size) if spatial else None

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to one of the same shape."""
        gate = self.channel_width(x, 2)[:, :, None]  # (B, C, 1, W)
        gate = gate + self.height_channel(x.transpose(1, 2), 3).transpose(1, 2)[..., None]  # its planes are (H, C)
        if self.spatial is None:
            return x * (gate / 2)
        return x * ((gate + self.spatial(x)[:, None]) / 3)
