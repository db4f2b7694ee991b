# SPDX-License-Identifier: Apache-2.0
"""Batch norm of maps whatever their memory layout, past a defect of PyTorch's backward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class _ContiguousGradient(torch.autograd.Function):
    """Identity whose gradient is laid out row by row."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].contiguous()


def batch_norm(norm: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`norm(x)`, differentiated rightly for any strides of `x` and of the gradient that comes back.

    PyTorch's backward of batch and instance norm is silently wrong (2.13 to 2.15, CPU) where of map and gradient one
    is contiguous and the other looks channels-last with an odd stride on an axis of size 1. Tokens `(1, L, C)` viewed
    as a map are such. Here both are made contiguous, which costs a copy where one is not.

    Args:
        norm: Batch or instance norm.
        x: `(B, C, H, W)`.
    """
    x = norm(x.contiguous())
    # An exported graph has no backward, and needs no node for it.
    return x if torch.compiler.is_exporting() else _ContiguousGradient.apply(x)


class BatchNorm(nn.BatchNorm2d):
    """Batch norm of maps `(B, C, H, W)` through `batch_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        """Norms `(B, C, H, W)`."""
        return batch_norm(super().forward, input)
