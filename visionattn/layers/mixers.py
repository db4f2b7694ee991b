# SPDX-License-Identifier: Apache-2.0
"""Token mixers by name, so that any host can take any of them."""

from typing import Any

from torch import nn

from .agent import AgentAttention
from .aggregated import AggregatedAttention, CosineGlobalAttention
from .area import AreaAttention
from .attention import GlobalAttention, NeighborhoodAttention, WindowAttention
from .bilevel import BilevelAttention, EnhancedAttention
from .circular import CircularAttention
from .composed import ComposedAttention, TalkingHeadsAttention
from .connectivity import SparsifiedAttention
from .content import ContentAttention
from .contmix import ContMix
from .convolution import DepthwiseConvolution, GatedConvolution, Pooling, SeparableConvolution
from .cosine import CosineWindowAttention
from .cross_shaped import CrossShapedAttention
from .deformable import DeformableAttention
from .distance import DistanceAttention
from .efficient import EfficientMixer
from .flow import FlowAttention
from .focused import FocusedLinearAttention
from .gated_linear import GatedLinearUnit, NetworkGate
from .halo import HaloAttention
from .head_routing import MoHAggregatedAttention, MoHCosineGlobalAttention
from .hilo import HiLoAttention
from .inline import InlineAttention
from .memory import MemoryAttention, RecurrentCacheAttention
from .names import pick
from .oversized import OversizedConvolution
from .partial import PartialChannelAttention, PartialConvolution, PartialSelfAttention
from .polarized import PolarizedMixer
from .recursive import RecursiveGatedConvolution
from .relative import BottleneckAttention
from .scan import SelectiveScan
from .sigmoid import SigmoidAttention
from .sinkhorn import SinkhornAttention
from .slide import SlideAttention
from .softmax_variants import ClippedAttention, GatedAttention, NormalizedAttention
from .spatial_reduction import PooledAttention, SpatialReductionAttention
from .spectral import SpectralFilter
from .taylor import TaylorAttention
from .token_pooling import TokenPooling
from .tokens import TokenAttention
from .words import AveragedAttention


class Identity(nn.Identity):
    """Nothing is mixed: what a host does without a mixer."""

    cost = "O(1)"


# Each class says in `cost` how its cost grows with the N pixels of a map, all other arguments fixed.
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
    "averaged": AveragedAttention,
    "cross_shaped": CrossShapedAttention,
    "content": ContentAttention,
    "bilevel": BilevelAttention,
    "enhanced": EnhancedAttention,
    "deformable": DeformableAttention,
    "slide": SlideAttention,
    "agent": AgentAttention,
    "aggregated": AggregatedAttention,
    "moh_aggregated": MoHAggregatedAttention,
    "moh_cosine_global": MoHCosineGlobalAttention,
    "focused_linear": FocusedLinearAttention,
    "inline": InlineAttention,
    "flow": FlowAttention,
    "hilo": HiLoAttention,
    "sparsified": SparsifiedAttention,
    "tokens": TokenAttention,
    "sigmoid": SigmoidAttention,
    "taylor": TaylorAttention,
    "circular": CircularAttention,
    "spectral": SpectralFilter,
    "sinkhorn": SinkhornAttention,
    "area": AreaAttention,
    "token_pooling": TokenPooling,
    "efficient": EfficientMixer,
    "polarized": PolarizedMixer,
    "gated": GatedAttention,
    "clipped": ClippedAttention,
    "normalized": NormalizedAttention,
    "talking_heads": TalkingHeadsAttention,
    "composed_heads": ComposedAttention,
    "memory": MemoryAttention,
    "recurrent_cache": RecurrentCacheAttention,
    "glu": GatedLinearUnit,
    "network_gate": NetworkGate,
    "gated_cnn": GatedConvolution,
    "contmix": ContMix,
    "oversized": OversizedConvolution,
    "recursive_gated": RecursiveGatedConvolution,
    "selective_scan": SelectiveScan,
    "depthwise": DepthwiseConvolution,
    "separable": SeparableConvolution,
    "pooling": Pooling,
    "distance": DistanceAttention,
    "partial_conv": PartialConvolution,
    "partial_channel": PartialChannelAttention,
    "partial_self": PartialSelfAttention,
    "identity": Identity,
}


def create_mixer(name: str, dim: int, num_heads: int, **kwargs: Any) -> nn.Module:
    """Token mixer `name` for maps of `dim` channels; `kwargs` go to its constructor.

    Raises:
        ValueError: If no mixer has that name; the nearest ones are offered.
    """
    return pick("mixer", name, MIXERS)(dim, num_heads, **kwargs)
