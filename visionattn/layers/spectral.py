# SPDX-License-Identifier: Apache-2.0
"""FFTNet: a filter of the tokens' spectrum that each image adapts, and an activation of its magnitudes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.kernels.fourier import irfft2, rfft2

from .attention import resize_line
from .checks import check_heads
from .tokens import at_least_float32, full_precision


class SpectralFilter(nn.Module):
    """Fourier transform of the tokens row after row, filter, activation, and back.

    Frequency f of head h becomes `z = Z * filter[h, f] (1 + s) + bias[h, f] + t`, with s and t from the mean token, and
    then `z GELU(|z|) / (|z| + 1e-6)`: the phase is kept. Filters of another number of tokens are resized linearly.

    Args:
        dim: Channels of the tokens; a multiple of `num_heads`.
        num_heads: Heads, with a filter each.
        proj_drop: Dropout of the result.
        num_tokens: Number of tokens that the filters are made for.
        adaptive: Whether the mean token changes the filters.
        standalone: Whether the layer norms what it reads and adds its input to the result by itself, as the published
            one does; hosts do both for mixers.

    Raises:
        ValueError: If `num_heads` does not divide `dim` or `num_tokens` is not positive.

    Paper: The FFT Strikes Back: An Efficient Alternative to Self-Attention, arXiv 2502.18394.
    """

    cost = "O(N log N)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        proj_drop: float = 0.0,
        num_tokens: int = 196,
        adaptive: bool = True,
        standalone: bool = False,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        if num_tokens < 1:
            raise ValueError(f"num_tokens={num_tokens} must be at least 1")
        frequencies = num_tokens // 2 + 1
        self.num_heads, self.standalone = num_heads, standalone
        self.filter = nn.Parameter(torch.ones(num_heads, frequencies))
        self.bias = nn.Parameter(torch.full((num_heads, frequencies), -0.1))
        self.context: nn.Module | None = None
        if adaptive:
            self.context = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, num_heads * frequencies * 2))
        self.norm = nn.LayerNorm(dim) if standalone else nn.Identity()
        self.proj_drop = nn.Dropout(proj_drop)

    def no_weight_decay(self) -> set[str]:
        """Parameters that no recipe decays, besides vectors."""
        return {"filter", "bias"}

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Mixes tokens `(B, N, C)` or a map `(B, H, W, C)`; the size of tokens' map changes nothing."""
        tokens = self.norm(x.flatten(1, -2))
        filters, biases = self._filters(tokens)
        with full_precision(tokens):
            lines = at_least_float32(tokens).transpose(1, 2).unflatten(1, (self.num_heads, -1))
            real, imaginary = rfft2(lines[..., None, :])
            real = real * filters + biases
            imaginary = imaginary * filters
            gain = _gain(real, imaginary)
            out = irfft2(real * gain, imaginary * gain, (1, lines.shape[-1]))
        out = self.proj_drop(out.squeeze(-2).flatten(1, 2).transpose(1, 2).to(tokens.dtype))
        out = out.unflatten(1, x.shape[1:-1])
        return x + out if self.standalone else out

    def _filters(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Factors and summands of the frequencies, `(B, heads, 1, 1, frequencies)` or without the first axis."""
        filters, biases = self.filter, self.bias
        if self.context is not None:
            change = self.context(tokens.mean(1)).unflatten(-1, (*self.filter.shape, 2))
            filters, biases = filters * (1 + change[..., 0]), biases + change[..., 1]
        frequencies = tokens.shape[1] // 2 + 1
        resized = [at_least_float32(resize_line(t, frequencies))[..., None, None, :] for t in (filters, biases)]
        return resized[0], resized[1]


def _gain(real: Tensor, imaginary: Tensor) -> Tensor:
    """Activation of the magnitudes over the magnitudes."""
    square = real.square() + imaginary.square()
    # The root has no gradient at 0; the magnitude's is 0 there.
    magnitude = torch.where(square > 0, square, 1).sqrt() * (square > 0)
    return F.gelu(magnitude) / (magnitude + 1e-6)
