# SPDX-License-Identifier: Apache-2.0
"""Dynamic convolution against its definition, pixel by pixel; its gradients, its memory, its errors."""

import pytest
import torch

from visionattn.kernels import dynamic_convolution, dynamic_torch, explain, use_backend


def call(height=4, width=6, size=3, dtype=torch.float64, batch=2, heads=2):
    """Strided views, as a packed projection gives them."""
    kernels = torch.randn(batch, heads, size**2, height, width, dtype=dtype).permute(0, 3, 4, 1, 2)
    v = torch.randn(batch, height, width, heads, 2, 3, dtype=dtype)[..., 1, :]
    return kernels.requires_grad_(), v.requires_grad_(), size


def defined(kernels, v, size):
    """Every pixel by itself."""
    height, width = v.shape[1:3]
    rows = []
    for i in range(height):
        top = min(max(i - size // 2, 0), height - size)
        row = []
        for j in range(width):
            left = min(max(j - size // 2, 0), width - size)
            window = v[:, top : top + size, left : left + size].flatten(1, 2)
            row.append(torch.einsum("bht,bthd->bhd", kernels[:, i, j], window))
        rows.append(torch.stack(row, 1))
    return torch.stack(rows, 1)


@pytest.fixture(params=[1 << 22, 1], ids=["one chunk", "a chunk a row"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(dynamic_torch, "CHUNK", request.param)


@pytest.mark.parametrize(("height", "width", "size"), [(4, 6, 3), (7, 5, 5), (3, 3, 3), (2, 5, 1)])
def test_pixels_see_their_windows(height, width, size, chunk):
    kernels, v, size = call(height, width, size)
    out, expected = dynamic_convolution(kernels, v, size), defined(kernels, v, size)
    cotangent = torch.randn_like(out)
    grads, defined_grads = (torch.autograd.grad(o, (kernels, v), cotangent) for o in (out, expected))
    assert torch.allclose(out, expected)
    assert all(torch.allclose(a, b) for a, b in zip(grads, defined_grads, strict=True))


def test_second_derivatives_are_right():
    kernels, v, size = call(3, 4, batch=1, heads=1)
    assert torch.autograd.gradgradcheck(lambda k, v: dynamic_convolution(k, v, size), (kernels, v))


def test_no_more_than_a_chunk_is_unfolded(monkeypatch):
    kernels, v, size = call(8, 6)
    two_rows = 2 * (2 * 2 * 3 * 6 * (3 + 6))
    monkeypatch.setattr(dynamic_torch, "CHUNK", two_rows)
    made = []
    bands, unfolded = dynamic_torch._bands, dynamic_torch._unfolded
    monkeypatch.setattr(dynamic_torch, "_bands", lambda *a: made.append(out := bands(*a)) or out)
    monkeypatch.setattr(dynamic_torch, "_unfolded", lambda *a: made.append(out := unfolded(*a)) or out)
    dynamic_convolution(kernels, v, size).sum().backward()
    pairs = [made[i].numel() + made[i + 1].numel() for i in range(0, len(made), 2)]
    assert len(pairs) == 8 and max(pairs) == two_rows


def test_half_precision_gradients_are_summed_in_float32():
    v = torch.randn(1, 9, 9, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    kernels = torch.full((1, 9, 9, 1, 81), 1.0078125, dtype=torch.bfloat16)
    dynamic_convolution(kernels, v, 9).sum().backward()  # every value is read by 81 pixels
    assert torch.allclose(v.grad.float(), torch.tensor(81 * 1.0078125), atol=0.5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kernel_size": 4}, ValueError, "kernel_size=4 must be odd"),
        ({"kernel_size": 5}, ValueError, "kernel_size=5 must be at most the sides of the 4x6 map"),
        ({"kernels": torch.randn(2, 4, 6, 2, 8).double()}, ValueError, r"it must be \(2, 4, 6, 2, 9\)"),
        ({"v": torch.randn(2, 4, 6, 6).double()}, ValueError, r"it must be \(B, H, W, heads, head_dim\)"),
        ({"v": torch.randn(2, 4, 6, 2, 3)}, TypeError, "must share one floating-point dtype"),
    ],
    ids=["even", "too large", "taps", "axes", "dtypes"],
)
def test_wrong_arguments_are_named(change, error, message):
    kernels, v, size = call()
    with pytest.raises(error, match=message):
        dynamic_convolution(**{"kernels": kernels, "v": v, "kernel_size": size, **change})


def test_backends_that_lack_the_op_are_passed_over_unless_asked_for():
    kernels, v, size = call(dtype=torch.float32)
    assert explain(dynamic_convolution, kernels, v, size).startswith("torch (not triton: it has no dynamic_convolution")
    with use_backend("triton"), pytest.raises(RuntimeError, match="it has no dynamic_convolution"):
        dynamic_convolution(kernels, v, size)
