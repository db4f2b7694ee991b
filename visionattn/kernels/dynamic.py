# SPDX-License-Identifier: Apache-2.0
"""Dynamic convolution: every pixel has kernels of its own, and windows stay inside the map."""

from __future__ import annotations

from torch import Tensor

from visionattn.kernels import dispatch, local  # noqa: F401  local registers the backends
from visionattn.kernels.dynamic_torch import dynamic_convolution_torch
from visionattn.kernels.pattern import is_symbolic

dispatch.register_op("torch", "dynamic_convolution", dynamic_convolution_torch)


def dynamic_convolution(kernels: Tensor, v: Tensor, kernel_size: int) -> Tensor:
    """Sums of the values in each pixel's window, weighed by that pixel's own kernel, one a head.

    The window of pixel `(i, j)` starts at `clamp(i - kernel_size // 2, 0, H - kernel_size)`, and so along its row: at
    the border it is moved inside, not padded, as in neighborhood attention. Windows are unfolded for a bounded number
    of rows at a time, and again in the backward, which keeps the inputs only. Gradients of values in half precision
    are accumulated in float32. Paper: OverLoCK, arXiv 2502.20087; the op is the second half of neighborhood attention.

    Args:
        kernels: Weights (B, H, W, heads, kernel_size ** 2), row by row of the window.
        v: Values (B, H, W, heads, head_dim).
        kernel_size: Side of the windows, odd, at most H and W.

    Returns:
        Output (B, H, W, heads, head_dim).

    Raises:
        ValueError: Shapes don't fit together, or the window is even or larger than the map.
        TypeError: The dtypes differ.
        RuntimeError: The backend asked for can't run the call.
    """
    if kernels.dtype != v.dtype or not v.is_floating_point():
        raise TypeError(f"kernels and v are {kernels.dtype} and {v.dtype}; they must share one floating-point dtype")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size={kernel_size} must be odd and positive")
    if not is_symbolic(*kernels.shape, *v.shape):
        _check_shapes(kernels, v, kernel_size)
    problem = dispatch.Problem("dynamic_convolution", v.device.type, v.dtype, v.shape[-1], v.shape[-1], 2)
    return dispatch.run(problem, kernels, v, kernel_size)


def _check_shapes(kernels: Tensor, v: Tensor, kernel_size: int) -> None:
    if v.ndim != 5:
        raise ValueError(f"v has shape {tuple(v.shape)}; it must be (B, H, W, heads, head_dim)")
    if kernel_size > min(v.shape[1:3]):
        raise ValueError(f"kernel_size={kernel_size} must be at most the sides of the {v.shape[1]}x{v.shape[2]} map")
    needed = (*v.shape[:4], kernel_size**2)
    if tuple(kernels.shape) != needed:
        raise ValueError(f"kernels has shape {tuple(kernels.shape)}; it must be {needed}")
