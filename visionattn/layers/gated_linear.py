# SPDX-License-Identifier: Apache-2.0
"""Mixers that are gates: a gated linear unit of each pixel, and a gate that a small network over the tokens makes."""

import torch.nn.functional as F
from torch import Tensor, nn

from .pooling import average_cells


class GatedLinearUnit(nn.Module):
    """`(GELU(x W) * x V) U` of each pixel; what pixels tell each other is left to the host.

    Args:
        dim: Channels of the map.
        num_heads: Not used; there, since all mixers take it.
        expansion_ratio: Width of the gate over `dim`.
        proj_drop: Dropout after the last layer.

    Raises:
        ValueError: If `expansion_ratio` leaves no channel.

    Paper: Activator: GLU Activation Function as the Core Component of a Vision Transformer.
    """

    cost = "O(N)"

    def __init__(self, dim: int, num_heads: int = 1, expansion_ratio: float = 2.0, proj_drop: float = 0.0) -> None:
        super().__init__()
        hidden = int(expansion_ratio * dim)
        if hidden < 1:
            raise ValueError(f"expansion_ratio={expansion_ratio} leaves no channel of dim={dim}; it must be greater")
        self.fc1 = nn.Linear(dim, 2 * hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Maps `(..., C)` to the same shape."""
        gate, value = self.fc1(x).chunk(2, -1)
        return self.proj_drop(self.fc2(F.gelu(gate) * value))


class NetworkGate(nn.Module):
    """A linear layer of the pixels times a gate that an inner network, mixing tokens and then channels, makes.

    The inner network is MLP-Mixer's block. It works on the map averaged to `map_size`, and its gate is resized
    bilinearly to the map; on a map of that size it is as defined.

    Args:
        dim: Channels of the map.
        num_heads: Not used; there, since all mixers take it.
        map_size: Side of the map that the inner network mixes.
        token_ratio: Hidden width of the MLP over tokens, over their number.
        mlp_ratio: Hidden width of the MLP over channels, over `dim`.
        proj_drop: Dropout of the result.

    Raises:
        ValueError: If `map_size` is not positive, or a ratio leaves no channel.

    Paper: NiNformer: A Network in Network Transformer with Token Mixing as a Gating Function Generator.
    """

    cost = "O(N)"

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        map_size: int = 14,
        token_ratio: float = 0.5,
        mlp_ratio: float = 2.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if map_size < 1:
            raise ValueError(f"map_size={map_size} must be at least 1")
        tokens = map_size**2
        for name, ratio, width in (("token_ratio", token_ratio, tokens), ("mlp_ratio", mlp_ratio, dim)):
            if ratio <= 0:
                raise ValueError(f"{name}={ratio} must be positive; it is the hidden width over {width}")
        self.map_size = map_size
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mix_tokens = _mlp(tokens, token_ratio)
        self.mix_channels = _mlp(dim, mlp_ratio)
        self.value = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        side = (self.map_size, self.map_size)
        cells = average_cells(x, side).flatten(1, 2)
        cells = cells + self.mix_tokens(self.norm1(cells).transpose(1, 2)).transpose(1, 2)
        cells = cells + self.mix_channels(self.norm2(cells))
        planes = cells.transpose(1, 2).unflatten(2, side)
        gate = F.interpolate(planes, size=x.shape[1:3], mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
        return self.proj_drop(self.value(x) * gate)


def _mlp(width: int, ratio: float) -> nn.Sequential:
    hidden = max(int(width * ratio), 1)
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
