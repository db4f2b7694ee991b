# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from visionattn.kernels.fourier import irfft2, rfft2

SIZES = [(4, 6), (7, 5), (1, 1), (1, 4), (6, 1), (9, 14)]


class RoundTrip(nn.Module):
    def forward(self, x):
        real, imaginary = rfft2(x)
        # Imaginary parts that no real map has in its first column.
        return real, imaginary, irfft2(real + 0.3, imaginary - 0.7, (x.shape[-2], x.shape[-1]))


@pytest.mark.parametrize("size", SIZES)
def test_the_parts_are_those_of_the_definition(size):
    x = torch.randn(2, *size, dtype=torch.float64)
    height, width = size
    expected = torch.zeros(2, height, width // 2 + 1, dtype=torch.complex128)
    for k in range(height):
        for j in range(width // 2 + 1):
            rows = torch.exp(-2j * torch.pi * k * torch.arange(height, dtype=torch.float64) / height)
            columns = torch.exp(-2j * torch.pi * j * torch.arange(width, dtype=torch.float64) / width)
            expected[:, k, j] = (x * rows[:, None] * columns).sum((1, 2)) / (height * width) ** 0.5
    real, imaginary = rfft2(x)
    torch.testing.assert_close(torch.complex(real, imaginary), expected)
    torch.testing.assert_close(irfft2(real, imaginary, size), x)


def test_exported_matrices_do_what_the_fft_does():
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
    example = torch.randn(2, 6, 5, dtype=torch.float64)
    exported = torch.export.export(RoundTrip(), (example,), dynamic_shapes=(free,)).module()
    for size in SIZES:
        if min(size) > 1:
            x = torch.randn(3, *size, dtype=torch.float64)
            for got, expected in zip(exported(x), RoundTrip()(x), strict=True):
                torch.testing.assert_close(got, expected)
