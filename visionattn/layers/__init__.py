# SPDX-License-Identifier: Apache-2.0
"""Modules made of kernels: token mixers, stems, downsamplers, blocks, gates."""

from .agent import AgentAttention
from .aggregated import AggregatedAttention, CosineGlobalAttention
from .attach import PLACES, attach
from .attention import (
    GlobalAttention,
    NeighborhoodAttention,
    RelativeAttention,
    WindowAttention,
    resize_line,
    resize_table,
)
from .batch_norm import batch_norm
from .bilevel import BilevelAttention, EnhancedAttention
from .block import Block
from .cbam import BAM, CBAM
from .convolution import GatedConvolution, Pooling, SeparableConvolution
from .cosine import CosineWindowAttention
from .cross_shaped import CrossShapedAttention
from .das import DAS
from .deformable import DeformableAttention
from .efficient import EfficientAttention
from .embed import (
    DOWNSAMPLERS,
    STEMS,
    ClassTokenEmbedding,
    ConditionalPosition,
    ConvDownsample,
    ConvStem,
    MiddleTokenEmbedding,
    OverlapStem,
    PatchDownsample,
    PatchMerging,
    PatchStem,
    PositionedDownsample,
    PositionedMerging,
    PositionEmbedding,
    PostNormMerging,
)
from .focused import FocusedLinearAttention
from .gates import GATES, create_gate
from .halo import HaloAttention
from .head import HEADS, pool_type_of
from .hilo import HiLoAttention
from .init import init_conv, init_conv_fan_out, init_conv_lecun, init_linear, init_table
from .inline import InlineAttention
from .linear_mixer import split_class
from .merging import DeformableMerging
from .mixers import MIXERS, create_mixer
from .mlp import MLPS, DepthwiseMlp
from .multi_scale import MultiScaleDeformableAttention
from .names import pick, unknown
from .norm import NORMS, LengthNorm, MapBatchNorm, RMSNorm, create_norm
from .oversized import OversizedConvolution
from .padding import pad_map, pad_to_multiple, pad_to_size
from .polarized import PolarizedAttention
from .recursive import GlobalLocalFilter, RecursiveGatedConvolution, resize_filter
from .relative import BottleneckAttention, RelativeVectors, resize_vectors
from .rotary import RotaryPosition
from .scan import SelectiveScan
from .slide import SlideAttention
from .spatial_reduction import PooledAttention, SpatialReductionAttention
from .strided import StridedBottleneckAttention, StridedHaloAttention
from .tokens import TokenAttention
from .triplet import TripletAttention
from .ulsam import ULSAM

__all__ = [
    "DOWNSAMPLERS",
    "GATES",
    "HEADS",
    "MIXERS",
    "MLPS",
    "NORMS",
    "PLACES",
    "STEMS",
    "AgentAttention",
    "AggregatedAttention",
    "BAM",
    "BilevelAttention",
    "Block",
    "BottleneckAttention",
    "CBAM",
    "ClassTokenEmbedding",
    "ConditionalPosition",
    "ConvDownsample",
    "ConvStem",
    "CosineGlobalAttention",
    "CosineWindowAttention",
    "CrossShapedAttention",
    "DAS",
    "DeformableAttention",
    "DeformableMerging",
    "DepthwiseMlp",
    "EfficientAttention",
    "EnhancedAttention",
    "FocusedLinearAttention",
    "GatedConvolution",
    "GlobalAttention",
    "GlobalLocalFilter",
    "HaloAttention",
    "HiLoAttention",
    "InlineAttention",
    "LengthNorm",
    "MapBatchNorm",
    "MiddleTokenEmbedding",
    "MultiScaleDeformableAttention",
    "NeighborhoodAttention",
    "OverlapStem",
    "OversizedConvolution",
    "PatchDownsample",
    "PatchMerging",
    "PatchStem",
    "PolarizedAttention",
    "PooledAttention",
    "Pooling",
    "PositionEmbedding",
    "PositionedDownsample",
    "PositionedMerging",
    "PostNormMerging",
    "RMSNorm",
    "RecursiveGatedConvolution",
    "RelativeAttention",
    "RelativeVectors",
    "RotaryPosition",
    "SelectiveScan",
    "SeparableConvolution",
    "SlideAttention",
    "SpatialReductionAttention",
    "StridedBottleneckAttention",
    "StridedHaloAttention",
    "TokenAttention",
    "TripletAttention",
    "ULSAM",
    "WindowAttention",
    "attach",
    "batch_norm",
    "create_gate",
    "create_mixer",
    "create_norm",
    "init_conv",
    "init_conv_fan_out",
    "init_conv_lecun",
    "init_linear",
    "init_table",
    "pad_map",
    "pad_to_multiple",
    "pad_to_size",
    "pick",
    "pool_type_of",
    "resize_filter",
    "resize_line",
    "resize_table",
    "resize_vectors",
    "split_class",
    "unknown",
]
