# SPDX-License-Identifier: Apache-2.0
"""Token mixers by name, so that any host can take any of them."""

from typing import Any

from torch import nn

from .agent import AgentAttention
from .aggregated import AggregatedAttention, CosineGlobalAttention
from .attention import GlobalAttention, NeighborhoodAttention, WindowAttention
from .bilevel import BilevelAttention, EnhancedAttention
from .convolution import GatedConvolution, Pooling, SeparableConvolution
from .cosine import CosineWindowAttention
from .cross_shaped import CrossShapedAttention
from .deformable import DeformableAttention
from .focused import FocusedLinearAttention
from .halo import HaloAttention
from .hilo import HiLoAttention
from .inline import InlineAttention
from .names import pick
from .oversized import OversizedConvolution
from .recursive import RecursiveGatedConvolution
from .relative import BottleneckAttention
from .scan import SelectiveScan
from .slide import SlideAttention
from .spatial_reduction import PooledAttention, SpatialReductionAttention
from .tokens import TokenAttention

MIXERS: dict[str, type[nn.Module]] = {
    "neighborhood": NeighborhoodAttention,
    "window": WindowAttention,
    "cosine_window": CosineWindowAttention,
    "cosine_global": CosineGlobalAttention,
    "global": GlobalAttention,
    "halo": HaloAttention,
    "bottleneck": BottleneckAttention,
    "spatial_reduction": SpatialReductionAttention,
    "pooled": PooledAttention,
    "cross_shaped": CrossShapedAttention,
    "bilevel": BilevelAttention,
    "enhanced": EnhancedAttention,
    "deformable": DeformableAttention,
    "slide": SlideAttention,
    "agent": AgentAttention,
    "aggregated": AggregatedAttention,
    "focused_linear": FocusedLinearAttention,
    "inline": InlineAttention,
    "hilo": HiLoAttention,
    "tokens": TokenAttention,
    "gated_cnn": GatedConvolution,
    "oversized": OversizedConvolution,
    "recursive_gated": RecursiveGatedConvolution,
    "selective_scan": SelectiveScan,
    "separable": SeparableConvolution,
    "pooling": Pooling,
    "identity": nn.Identity,
}


def create_mixer(name: str, dim: int, num_heads: int, **kwargs: Any) -> nn.Module:
    """Token mixer `name` for maps of `dim` channels; `kwargs` go to its constructor.

    Raises:
        ValueError: If no mixer has that name; the nearest ones are offered.
    """
    return pick("mixer", name, MIXERS)(dim, num_heads, **kwargs)
