# SPDX-License-Identifier: Apache-2.0
"""Fourier transforms of real maps as pairs of real tensors: by FFT, and by matrices where a graph is exported.

ONNX has no complex numbers, and its runtimes lack the transform of a half spectrum.
"""

import math

import torch
from torch import Tensor


def rfft2(x: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal transform of real maps, as `torch.fft.rfft2(x, norm="ortho")`.

    Args:
        x: `(..., H, W)` in float32 or float64.

    Returns:
        Real and imaginary parts of the half spectrum, `(..., H, W // 2 + 1)` each.
    """
    if not torch.compiler.is_exporting():
        real, imaginary = torch.view_as_real(torch.fft.rfft2(x, norm="ortho")).unbind(-1)
        return real, imaginary
    height, width = x.shape[-2:]
    cosine, sine = _waves(width, width // 2 + 1, x)
    real, imaginary = x @ cosine, -(x @ sine)
    cosine, sine = _waves(height, height, x)
    return cosine @ real + sine @ imaginary, cosine @ imaginary - sine @ real


def irfft2(real: Tensor, imaginary: Tensor, size: tuple[int, int]) -> Tensor:
    """Real maps of a half spectrum, as `torch.fft.irfft2(…, s=size, norm="ortho")`.

    Args:
        real: Real parts, `(..., H, W // 2 + 1)`.
        imaginary: Imaginary parts. Those of the first column, and of the last where W is even, count only as far as
            they belong to the spectrum of a real map.
        size: `(H, W)` of the maps.

    Returns:
        Maps, `(..., H, W)`.
    """
    if not torch.compiler.is_exporting():
        spectrum = torch.view_as_complex(torch.stack([real, imaginary], -1))
        return torch.fft.irfft2(spectrum, s=size, norm="ortho")
    height, width = size
    cosine, sine = _waves(height, height, real)
    real, imaginary = cosine @ real - sine @ imaginary, cosine @ imaginary + sine @ real
    half = width // 2 + 1
    column = torch.arange(half, device=real.device)
    # A column stands for its mirror image too, unless it is its own.
    times = torch.where((column == 0) | (2 * column == width), 1, 2).to(real.dtype)
    cosine, sine = _waves(width, half, real)
    return (real * times) @ cosine.mT - (imaginary * times) @ sine.mT


def _waves(length: int, frequencies: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines at every position and frequency, `(length, frequencies)`, of orthonormal transforms."""
    positions = torch.arange(length, device=like.device)
    # Less whole turns, for accuracy; the exporter takes the remainder by a tensor only.
    turns = positions[:, None] * torch.arange(frequencies, device=like.device) % (positions[-1:] + 1)
    angles = turns.to(like.dtype) * (2 * math.pi / length)
    scale = like.new_ones(()) * length**-0.5
    return angles.cos() * scale, angles.sin() * scale
