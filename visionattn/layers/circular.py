# SPDX-License-Identifier: Apache-2.0
"""CAT: attention whose matrix is circulant, one score a token, by Fourier transforms."""

from torch import Tensor, nn

from visionattn.kernels.fourier import irfft2, rfft2

from .checks import check_heads
from .tokens import at_least_float32, full_precision, number_of

DIRECTIONS = ("correlation", "convolution")


class CircularAttention(nn.Module):
    """One softmax over all tokens, the same for all of them but turned to begin at each.

    With scores `a = softmax(x W)` token i gets the sum of `a[t] v[i + t]`, indices taken modulo N: pixels form a
    circle, row after row. There is no public code; the paper's order of shifts may be either of the two offered, which
    differ by a relabelling of the scores.

    Args:
        dim: Channels of the tokens; a multiple of `num_heads`.
        num_heads: Attention heads, one score a token each.
        qkv_bias: Whether the projection of the values, and of queries and keys where there are any, has a bias.
        proj_drop: Dropout after the output projection.
        direction: "correlation" for `v[i + t]`, "convolution" for `v[i - t]`.
        averaged_key: Whether scores are products of queries and the mean of all keys over `sqrt(D)`, instead of a
            projection of their own.

    Raises:
        ValueError: If `num_heads` does not divide `dim` or there is no such direction.

    Paper: CAT: Circular-Convolutional Attention for Sub-Quadratic Transformers, arXiv 2504.06704.
    """

    cost = "O(N log N)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = False,
        proj_drop: float = 0.0,
        direction: str = "correlation",
        averaged_key: bool = False,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        _check_direction(direction)
        self.num_heads, self.direction, self.averaged_key = num_heads, direction, averaged_key
        self.scale = (dim // num_heads) ** -0.5
        if averaged_key:
            self.qk = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        else:
            self.score = nn.Linear(dim, num_heads, bias=False)
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Mixes tokens `(B, N, C)` or a map `(B, H, W, C)`; the size of tokens' map changes nothing."""
        tokens = x.flatten(1, -2)
        values = self.v(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        out = circular_attention(self._scores(tokens).transpose(1, 2), values, self.direction).to(values.dtype)
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2))).unflatten(1, x.shape[1:-1])

    def _scores(self, tokens: Tensor) -> Tensor:
        """Scores `(B, N, heads)`."""
        if not self.averaged_key:
            return self.score(tokens)
        q, k = self.qk(tokens).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        return (q * k.mean(1, keepdim=True)).sum(-1) * self.scale


def circular_attention(scores: Tensor, v: Tensor, direction: str = "correlation") -> Tensor:
    """Values turned around and weighed by the softmax of scores.

    Args:
        scores: `(B, heads, N)`.
        v: Values `(B, heads, N, D)`.
        direction: "correlation": token i gets `sum_t softmax(scores)[t] v[i + t]`; "convolution": `v[i - t]`.

    Returns:
        `(B, heads, N, D)`, in float32 at least.

    Raises:
        ValueError: If there is no such direction.
    """
    _check_direction(direction)
    with full_precision(v):
        weights, values = at_least_float32(scores).softmax(-1), at_least_float32(v).transpose(-2, -1)
        # Transforms of lines, as maps of one row.
        a, b = rfft2(weights[..., None, None, :])
        c, d = rfft2(values[..., None, :])
        if direction == "correlation":
            b = -b
        # Both transforms are orthonormal, and the product of two is one root too small.
        root = number_of(values, -1).sqrt()
        line = irfft2((a * c - b * d) * root, (a * d + b * c) * root, (1, values.shape[-1]))
    return line.squeeze(-2).transpose(-2, -1)


def _check_direction(direction: str) -> None:
    if direction not in DIRECTIONS:
        raise ValueError(f"direction={direction!r} must be one of {DIRECTIONS}")
