# SPDX-License-Identifier: Apache-2.0
"""Selective scan: a linear recurrence whose steps the tokens themselves choose."""

from __future__ import annotations

from torch import Tensor

from visionattn.kernels import dispatch, local  # noqa: F401  local registers the backends
from visionattn.kernels.pattern import is_symbolic
from visionattn.kernels.scan_torch import selective_scan_torch

dispatch.register_op("torch", "selective_scan", selective_scan_torch)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    reverse: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan of a sequence by a diagonal state space model whose step, input and output vectors are made by each token.

    With the step ``d_t = delta_t + delta_bias``, or its softplus, every channel keeps a state of N numbers,
    ``h_t = exp(d_t A) h_(t-1) + d_t u_t B_t`` from zero, and gives ``(<C_t, h_t> + D u_t) silu(z_t)``. States are
    kept for a bounded number of images and channels at a time, in float32 at least, and computed again in the
    backward, which keeps no state. Paper: Mamba, arXiv 2312.00752.

    Args:
        u: Sequence (batch, L, channels), L >= 1.
        delta: Steps (batch, L, channels).
        A: Rates (channels, N); states fade where they are negative.
        B: Input vectors (batch, L, N), the same for all channels.
        C: Output vectors (batch, L, N).
        D: Factors (channels) of `u` in the output; None for 0.
        z: Gate (batch, L, channels); None for none.
        delta_bias: Added to the steps (channels); None for 0.
        delta_softplus: Whether steps are the softplus of the sum.
        reverse: Scan from the last token to the first.
        return_last_state: Return the state after the last step too.

    Returns:
        Output (batch, L, channels) in the dtype of `u`; or that and the state (batch, channels, N).

    Raises:
        ValueError: Shapes don't fit together, or the sequence is empty.
        TypeError: A tensor is not of a floating-point dtype.
        RuntimeError: The backend asked for can't run the call.
    """
    named = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    for name, x in named.items():
        if x is not None and not x.is_floating_point():
            raise TypeError(f"{name} is {x.dtype}; it must be of a floating-point dtype")
    if not is_symbolic(*u.shape, *delta.shape, *B.shape, *C.shape):
        _check_shapes(named)
    problem = dispatch.Problem("selective_scan", u.device.type, u.dtype, A.shape[-1], A.shape[-1], 1)
    out, state = dispatch.run(problem, u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse)
    return (out, state) if return_last_state else out


def _check_shapes(named: dict[str, Tensor | None]) -> None:
    u, rates = named["u"], named["A"]
    assert u is not None and rates is not None
    if u.ndim != 3 or min(u.shape[1:]) < 1:
        raise ValueError(f"u has shape {tuple(u.shape)}; it must be (batch, L, channels) with L and channels > 0")
    batch, length, channels = u.shape
    if rates.ndim != 2 or rates.shape[0] != channels or rates.shape[1] < 1:
        raise ValueError(f"A has shape {tuple(rates.shape)}; it must be ({channels}, N) with N > 0")
    vectors, factors = (batch, length, rates.shape[1]), (channels,)
    expected = {"delta": u.shape, "B": vectors, "C": vectors, "D": factors, "z": u.shape, "delta_bias": factors}
    for name, shape in expected.items():
        x = named[name]
        if x is not None and x.shape != shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be {tuple(shape)}")
