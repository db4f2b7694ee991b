# SPDX-License-Identifier: Apache-2.0
"""Efficient attention: keys summarise the values over all positions, and queries read the summary."""

from torch import Tensor, nn

from .tokens import TokenMixer, at_least_float32


class EfficientAttention(nn.Module):
    """Attention of linear cost, added to its input.

    Each key channel is a softmax over all positions, each query one over its head's channels; there is no scale.

    Args:
        channels: Channels of the map.
        key_channels: Channels of keys and queries; None for half of `channels`.
        value_channels: Channels of values; None for half of `channels`.
        num_heads: Heads; a divisor of both.

    Raises:
        ValueError: If `num_heads` does not divide key and value channels.

    Paper: Efficient Attention: Attention with Linear Complexities, arXiv 1812.01243.
    """

    def __init__(
        self,
        channels: int,
        key_channels: int | None = None,
        value_channels: int | None = None,
        num_heads: int = 1,
    ) -> None:
        super().__init__()
        keys = channels // 2 if key_channels is None else key_channels
        values = channels // 2 if value_channels is None else value_channels
        for name, width in (("key_channels", keys), ("value_channels", values)):
            if width < 1 or num_heads < 1 or width % num_heads:
                raise ValueError(f"num_heads={num_heads} must be a positive divisor of {name}={width}")
        self.num_heads = num_heads
        self.keys = nn.Conv2d(channels, keys, 1)
        self.queries = nn.Conv2d(channels, keys, 1)
        self.values = nn.Conv2d(channels, values, 1)
        self.reprojection = nn.Conv2d(values, channels, 1)

    def _heads(self, x: Tensor) -> Tensor:
        """`(B, heads * D, H, W)` to `(B, heads, D, L)`."""
        return x.flatten(2).unflatten(1, (self.num_heads, -1))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to one of the same shape."""
        q, k, v = (self._heads(layer(x)).transpose(2, 3) for layer in (self.queries, self.keys, self.values))
        out = efficient_attention(q, k, v).transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:]).contiguous()
        return self.reprojection(out) + x


class EfficientMixer(TokenMixer):
    """Keys, each channel a softmax over all tokens, sum values up; queries, a softmax over channels, read the sums.

    Args:
        dim: Channels of the tokens; a multiple of `num_heads`.
        num_heads: Attention heads.
        qkv_bias: Whether the qkv projection has a bias.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If `num_heads` does not divide `dim`.

    Paper: Efficient Attention: Attention with Linear Complexities, arXiv 1812.01243.
    """

    cost = "O(N)"

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, proj_drop: float = 0.0) -> None:
        super().__init__(dim, num_heads, qkv_bias, None, proj_drop)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Efficient attention."""
        return efficient_attention(q, k, v)


def efficient_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries `(..., L, D)` read sums of values `(..., N, E)` by keys `(..., N, D)`; returns `(..., L, E)`."""
    keys, queries = at_least_float32(k).softmax(-2).to(v.dtype), at_least_float32(q).softmax(-1).to(v.dtype)
    return queries @ (keys.transpose(-2, -1) @ v)
