# SPDX-License-Identifier: Apache-2.0
"""Initial values that the references share."""

import math

from timm.layers import lecun_normal_, trunc_normal_
from torch import Tensor, nn


def init_table(tensor: Tensor, std: float = 0.02) -> None:
    """Truncated normal of standard deviation `std`, cut at 2: linear weights, position tables."""
    if not tensor.is_meta:  # there is nothing to draw, and tracing the draw would dominate building on that device
        trunc_normal_(tensor, std=std)


def init_conv_fan_out(module: nn.Module) -> None:
    """Normal weights of variance 2 / fan-out and zero biases for a 2-D convolution; other modules are left alone."""
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_conv(module: nn.Module) -> None:
    """`init_table` weights and zero biases for a 2-D convolution; other modules are left alone."""
    if isinstance(module, nn.Conv2d):
        init_table(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_conv_lecun(module: nn.Conv2d) -> None:
    """Truncated normal weights of variance 1 / fan-in and zero biases."""
    if not module.weight.is_meta:
        lecun_normal_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def init_linear(module: nn.Module) -> None:
    """`init_table` weights and zero biases for a linear layer; other modules are left alone."""
    if isinstance(module, nn.Linear):
        init_table(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
