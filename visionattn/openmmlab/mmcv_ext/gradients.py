# SPDX-License-Identifier: Apache-2.0
"""What the backward ops share: vector-Jacobian products and a dtype wide enough to add up in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor) -> tuple[Tensor, ...]:
    """Gradients of `function(*inputs)` with respect to each input, zero where it does not matter."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        output = function(*leaves)
    grads = torch.autograd.grad(output, leaves, grad_output, allow_unused=True)
    return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True))


def wide(x: Tensor) -> Tensor:
    """`x` in float32 where its dtype is narrower: neither torchvision's CPU ops nor long sums can do with less."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) or not x.is_floating_point() else x
