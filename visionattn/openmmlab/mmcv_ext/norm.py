# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of batch norm whose statistics the caller adds up over processes."""

from __future__ import annotations

from torch import Tensor

from visionattn.openmmlab.mmcv_ext.gradients import wide


def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Write the mean (C,) of maps (B, C, L)."""
    mean.copy_(wide(input).mean((0, 2)))


def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Write the mean square (C,) of maps (B, C, L) around `mean` (C,)."""
    var.copy_((wide(input) - mean[:, None]).square().mean((0, 2)))


def sync_bn_forward_output(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    norm: Tensor,
    std: Tensor,
    output: Tensor,
    eps: float,
    momentum: float | Tensor,
    group_size: int,
) -> None:
    """Write normalised maps, and move the running statistics.

    Args:
        input: (B, C, L).
        mean: (C,).
        var: (C,), divided by the number of values.
        weight: (C,) or None.
        bias: (C,) or None.
        running_mean: (C,) or None; moves by `momentum`.
        running_var: (C,) or None; moves towards the unbiased variance.
        norm: Output (B, C, L) before weight and bias.
        std: Output (C,), the root of `var + eps`.
        output: (B, C, L).
        eps: Added to the variance.
        momentum: From 0 to 1.
        group_size: Processes that share the statistics.
    """
    std.copy_((var + eps).sqrt())
    norm.copy_((wide(input) - mean[:, None]) / std[:, None])
    scaled = norm if weight is None else norm * weight[:, None]
    output.copy_(scaled if bias is None else scaled + bias[:, None])
    count = input.shape[0] * input.shape[2] * group_size
    if running_mean is not None and running_var is not None and count:
        running_mean.copy_((1 - momentum) * running_mean + momentum * mean)
        running_var.copy_((1 - momentum) * running_var + momentum * var * (count / max(count - 1, 1)))


def sync_bn_backward_param(grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor) -> None:
    """Write the gradients of weight and bias (C,)."""
    grad_weight.copy_((wide(grad_output) * norm).sum((0, 2)))
    grad_bias.copy_(wide(grad_output).sum((0, 2)))


def sync_bn_backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """Write the gradient of the input from those of weight and bias, which are means over processes."""
    count = grad_output.shape[0] * grad_output.shape[2]
    shared = (norm * grad_weight[:, None] + grad_bias[:, None]) / max(count, 1)
    grad_input.copy_((wide(grad_output) - shared) * (weight / std)[:, None])
