# SPDX-License-Identifier: Apache-2.0
"""TaylorShift: softmax with the exponential cut off after its square, at quadratic or at linear cost, as is cheaper."""

from collections.abc import Sequence
from functools import partial, reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from visionattn.kernels.pattern import is_symbolic

from .tokens import TokenMixer, at_least_float32, chunks_of, full_precision, in_chunks, number_of


class TaylorAttention(TokenMixer):
    """Every token attends to all tokens, with weights `t² / 2 + t + 1` over their sum, `t` of unit vectors.

    Queries and keys are normed to length one, queries times a temperature, and the result is scaled by `sqrt(N / D)`.
    The direct form costs O(N² D), the efficient one, which gives the same, O(N D³).

    Args:
        dim: Channels of the tokens; a multiple of `num_heads`.
        num_heads: Attention heads.
        qkv_bias: Whether the qkv projection has a bias.
        qk_scale: Factor on queries before they are normed, which matters to vectors of almost no length; None means
            `dim ** -0.5`.
        proj_drop: Dropout after the output projection.
        crossover: Number of tokens above which the efficient form is taken; None for `D² + D + 1`, from where on it
            computes less. Graphs traced with symbolic sizes always have the efficient form.
        scale_output: Whether the result is scaled.

    Raises:
        ValueError: If `num_heads` does not divide `dim`.

    Paper: TaylorShift: Shifting the Complexity of Self-Attention from Squared to Linear (and Back) using
    Taylor-Softmax, arXiv 2403.02920.
    """

    cost = "O(N)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        crossover: int | None = None,
        scale_output: bool = True,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, dim**-0.5 if qk_scale is None else qk_scale, proj_drop)
        head_dim = dim // num_heads
        self.crossover = head_dim**2 + head_dim + 1 if crossover is None else crossover
        self.scale_output = scale_output
        self.temperature = nn.Parameter(torch.ones(num_heads))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Taylor attention of normed queries and keys."""
        efficient = is_symbolic(k.shape[-2]) or k.shape[-2] > self.crossover
        with full_precision(q):
            q, k = (F.normalize(at_least_float32(t), dim=-1) for t in (q * self.scale, k))
            q = q * self.temperature.to(q.dtype)[:, None, None]
            out = taylor_attention(q, k, at_least_float32(v), efficient=efficient)
            if self.scale_output:
                out = out * (number_of(k, -2) / k.shape[-1]).sqrt()
        return out.to(v.dtype)


def taylor_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    coefficients: Sequence[float] = (0.5, 1.0, 1.0),
    efficient: bool = False,
) -> Tensor:
    """Values weighed by `a t² + b t + c` over their sum, `t` the products of queries and keys.

    Args:
        q: Queries `(B, heads, L, D)`, in float32 at least.
        k: Keys `(B, heads, N, D)`.
        v: Values `(B, heads, N, E)`.
        coefficients: `(a, b, c)`, positive for all t: a > 0 and c > b² / 4a.
        efficient: Whether cost is linear in L and N, through the products of every two channels of a key; the result
            is the same.

    Returns:
        `(B, heads, L, E)`. Memory is linear in L and N.

    Raises:
        ValueError: If the coefficients make a polynomial that is not positive.
    """
    a, b, c = coefficients
    if a <= 0 or 4 * a * c <= b * b:
        raise ValueError(f"coefficients={tuple(coefficients)} must make a t² + b t + c positive: a > 0, c > b² / 4a")

    def direct(queries: Tensor) -> Tensor:
        products = queries @ k.transpose(-2, -1)
        weights = a * products.square() + b * products + c
        return (weights @ v) / weights.sum(-1, keepdim=True)

    if not efficient:
        return in_chunks(direct, q, k.shape[-2])
    channels = q.shape[-1]
    # A further value of one sums the weights up.
    values = F.pad(v, (1, 0), value=1.0)
    parts = chunks_of(torch.cat([k, values], -1), channels**2)
    summed = partial(checkpoint, _sum_of_squares, use_reentrant=False) if len(parts) > 1 else _sum_of_squares
    squares = a * reduce(torch.add, (summed(part, channels) for part in parts))
    lines, total = b * (k.transpose(-2, -1) @ values), c * values.sum(-2, keepdim=True)

    def read(queries: Tensor) -> Tensor:
        sums = _squares(queries) @ squares + queries @ lines + total
        return sums[..., 1:] / sums[..., :1]

    return in_chunks(read, q, channels**2)


def _sum_of_squares(keys_and_values: Tensor, channels: int) -> Tensor:
    """Values summed up by the products of every two channels of their keys, `(..., D * D, E)`."""
    keys, values = keys_and_values[..., :channels], keys_and_values[..., channels:]
    return _squares(keys).transpose(-2, -1) @ values


def _squares(x: Tensor) -> Tensor:
    """Products `(..., N, D * D)` of every two channels."""
    return (x[..., :, None] * x[..., None, :]).flatten(-2)
