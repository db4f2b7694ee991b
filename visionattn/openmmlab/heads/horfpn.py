# SPDX-License-Identifier: Apache-2.0
"""HorNet's feature pyramid: recursive gated convolutions at its outputs.

    custom_imports = dict(imports=["visionattn.openmmlab.heads.horfpn"])

Needs mmdetection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.models.necks import FPN
from mmdet.registry import MODELS
from torch import Tensor, nn

from visionattn.layers import RecursiveGatedConvolution


class MapMixer(nn.Module):
    """A token mixer of maps `(B, C, H, W)`.

    Args:
        mixer: Of maps `(B, H, W, C)`.
    """

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, C, H, W)`."""
        return self.mixer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()


@MODELS.register_module()
class HorFPN(FPN):
    """Feature pyramid whose output convolutions are recursive gated convolutions.

    Args:
        *args: Of mmdetection's FPN.
        order: Products of the gated convolutions.
        kernel_size: Side of their depth-wise convolutions, odd.
        filter_size: `(height, width)` of Fourier filters in the convolutions' place; None for convolutions.
        **kwargs: Of mmdetection's FPN; `add_extra_convs` must be False.

    Raises:
        ValueError: If extra levels are to be made by convolutions.

    Paper: HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions, arXiv 2207.14284.
    """

    def __init__(
        self,
        *args: Any,
        order: int = 2,
        kernel_size: int = 7,
        filter_size: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.add_extra_convs:
            raise ValueError(f"add_extra_convs={self.add_extra_convs!r} must be False: levels are pooled here")

        def output() -> MapMixer:
            mixer = RecursiveGatedConvolution(
                self.out_channels, order=order, kernel_size=kernel_size, filter_size=filter_size
            )
            return MapMixer(mixer)

        self.fpn_convs = nn.ModuleList(output() for _ in range(self.start_level, self.backbone_end_level))
