# SPDX-License-Identifier: Apache-2.0
"""Gates by name: modules that weigh a map `(B, C, H, W)` and keep its shape, for any host."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.layers import get_attn
from torch import nn

from .cbam import BAM, CBAM
from .das import DAS
from .efficient import EfficientAttention
from .names import pick
from .polarized import PolarizedAttention
from .triplet import TripletAttention
from .ulsam import ULSAM

# timm's own that keep the shape; its `cbam` differs from the authors', which has that name here.
TIMM_GATES = ("se", "ese", "eca", "ecam", "ceca", "gc", "gca", "lcbam", "coord", "scoord", "ela", "strip", "nl")

GATES: dict[str, Callable[..., nn.Module]] = {
    "cbam": CBAM,
    "bam": BAM,
    "triplet": TripletAttention,
    "ulsam": ULSAM,
    "polarized": PolarizedAttention,
    "polarized_sequential": partial(PolarizedAttention, sequential=True),
    "efficient": EfficientAttention,
    "das": DAS,
    "timm_cbam": get_attn("cbam"),
    **{name: get_attn(name) for name in TIMM_GATES},
}


def create_gate(
    name: str,
    channels: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Gate for maps `(B, C, H, W)`.

    `partial(create_gate, "triplet")` is also what timm takes where a network has an argument for such layers, as
    `block_args=dict(attn_layer=...)` of its ResNets; timm's own factory knows no names but its own.

    Args:
        name: Name of the gate, one of `GATES`.
        channels: Channels of the map.
        device: Where its parameters are; None for the default.
        dtype: What they are; None for the default.
        **kwargs: Of the gate.

    Raises:
        ValueError: If no gate has that name; the nearest ones are offered.
    """
    return pick("gate", name, GATES)(channels, **kwargs).to(device=device, dtype=dtype)
