# SPDX-License-Identifier: Apache-2.0
"""The pre-norm transformer block, around any token mixer."""

from timm.layers import DropPath, LayerScale, Mlp
from torch import Tensor, nn


class Block(nn.Module):
    """`x + mixer(norm(x))`, then `x + mlp(norm(x))`, each branch scaled and dropped as asked.

    Args:
        dim: Channels of the map.
        mixer: Module that maps `(B, H, W, C)` to the same shape.
        mlp_ratio: Hidden width of the MLP over `dim`.
        layer_scale: Initial value of the per-channel factors on the branches; None leaves the factors out.
        proj_drop: Dropout inside the MLP.
        drop_path: Probability that a sample skips a branch in training.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = mixer
        self.scale1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop)
        self.scale2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, H, W, C)` to the same shape."""
        x = x + self.drop_path(self.scale1(self.attn(self.norm1(x))))
        return x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))
