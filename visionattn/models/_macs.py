# SPDX-License-Identifier: Apache-2.0
"""Multiply-accumulates of a model, as papers count them."""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

# Layers that keep shapes and count nothing; on the meta device they take most of the time.
IDLE = (nn.BatchNorm2d, nn.LayerNorm, nn.GELU, nn.ReLU, nn.SiLU, nn.Dropout)


def count_macs(model: nn.Module, input_size: tuple[int, int, int], attention: bool = True) -> int:
    """Multiply-accumulates of one image's forward pass: convolutions, linear layers and attention products.

    Attention is counted by its definition, keys seen times channels, not by what a backend happens to compute.

    Args:
        model: Model; its weights are neither read nor changed.
        input_size: `(C, H, W)` of the image.
        attention: Whether attention products count; some authors leave them out.
    """
    model = copy.deepcopy(model).to("meta").eval()
    products: list[int] = []
    for module in model.modules():
        if isinstance(module, IDLE):
            module.forward = _same  # type: ignore[assignment,method-assign]
        elif hasattr(module, "attention_macs"):
            module.forward = partial(_projections, module, products)  # type: ignore[method-assign]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, *input_size, device="meta"))
    return counter.get_total_flops() // 2 + (sum(products) if attention else 0)


def _same(x: Tensor) -> Tensor:
    return x


def _projections(mixer: Any, products: list[int], x: Tensor, *more: Any) -> Tensor:
    """The mixer without its attention, which is noted down instead."""
    if hasattr(mixer, "without_attention"):  # of maps (B, C, H, W)
        products.append(mixer.attention_macs(x.shape[2], x.shape[3]))
        return mixer.without_attention(x)
    # Tokens that a class token leads come with the size of their map.
    height, width = more[0] if x.ndim == 3 else x.shape[1:3]
    products.append(mixer.attention_macs(height, width))
    return mixer.project_out(mixer.project_in(x)[0])  # queries have the shape of the output
