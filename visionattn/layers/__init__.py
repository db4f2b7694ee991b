# SPDX-License-Identifier: Apache-2.0
"""Modules made of kernels: token mixers, stems, downsamplers, blocks, gates."""

from .agent import AgentAttention
from .aggregated import AggregatedAttention, CosineGlobalAttention
from .area import AreaAttention
from .attach import PLACES, attach
from .attention import (
    GlobalAttention,
    NeighborhoodAttention,
    RelativeAttention,
    WindowAttention,
    resize_line,
    resize_table,
)
from .batch_norm import BatchNorm, batch_norm
from .bilevel import BilevelAttention, EnhancedAttention
from .block import BilateralBlock, Block, NestedBlock
from .cbam import BAM, CBAM
from .circular import CircularAttention
from .composed import ComposedAttention, TalkingHeadsAttention
from .connectivity import Connectivity, ConnectivityPredictor, SparsifiedAttention
from .content import ContentAttention, splits_for
from .context import (
    ChannelAffine,
    ContextBlock,
    ContextDownsample,
    NormedDownsample,
    ResidualDepthwise,
    StaticBlock,
)
from .contmix import ContMix
from .convolution import DepthwiseConvolution, GatedConvolution, Pooling, SeparableConvolution
from .cosine import CosineWindowAttention
from .cross_shaped import CrossShapedAttention
from .das import DAS
from .deformable import DeformableAttention
from .distance import DistanceAttention
from .efficient import EfficientAttention, EfficientMixer
from .embed import (
    DOWNSAMPLERS,
    STEMS,
    ClassTokenEmbedding,
    ConditionalPosition,
    ConvDownsample,
    ConvPatchStem,
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
from .flow import FlowAttention
from .focused import FocusedLinearAttention
from .gated_linear import GatedLinearUnit, NetworkGate
from .gates import GATES, create_gate
from .gramian import GramianHead, GramianToken
from .halo import HaloAttention
from .head import HEADS, PooledMlpHead, ProjectedHead, pool_type_of
from .head_routing import HeadRouter, MoHAggregatedAttention, MoHCosineGlobalAttention, watch_imbalance
from .hilo import HiLoAttention
from .init import init_conv, init_conv_fan_out, init_conv_lecun, init_linear, init_table
from .inline import InlineAttention
from .linear_mixer import split_class
from .memory import MemoryAttention, RecurrentCacheAttention
from .merging import DeformableMerging
from .mixers import MIXERS, create_mixer
from .mlp import MLPS, DepthwiseMlp
from .multi_scale import MultiScaleDeformableAttention
from .names import pick, unknown
from .norm import NORMS, LengthNorm, MapBatchNorm, RMSNorm, create_norm
from .oversized import OversizedConvolution
from .padding import pad_map, pad_to_multiple, pad_to_size
from .partial import (
    DynamicPartialConvolution,
    PartialChannelAttention,
    PartialConvolution,
    PartialSelfAttention,
)
from .polarized import PolarizedAttention, PolarizedMixer
from .pooling import average_cells
from .recursive import GlobalLocalFilter, RecursiveGatedConvolution, resize_filter
from .relative import BottleneckAttention, RelativeVectors, resize_vectors
from .reparam import DilatedReparam, fuse
from .rotary import RotaryPosition
from .scan import SelectiveScan
from .sigmoid import SigmoidAttention
from .sinkhorn import SinkhornAttention
from .slide import SlideAttention
from .softmax_variants import ClippedAttention, GatedAttention, NormalizedAttention
from .spatial_reduction import PooledAttention, SpatialReductionAttention
from .spectral import SpectralFilter
from .strided import StridedBottleneckAttention, StridedHaloAttention
from .taylor import TaylorAttention
from .token_pooling import TokenPooling
from .tokens import TokenAttention
from .triplet import TripletAttention
from .ulsam import ULSAM
from .words import AveragedAttention, PairBias, WordMerging, WordPath, WordPositions, WordStem, resize_pairs

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
    "AreaAttention",
    "AveragedAttention",
    "BAM",
    "BatchNorm",
    "BilateralBlock",
    "BilevelAttention",
    "Block",
    "BottleneckAttention",
    "CBAM",
    "ChannelAffine",
    "CircularAttention",
    "ClassTokenEmbedding",
    "ClippedAttention",
    "ComposedAttention",
    "ConditionalPosition",
    "ContMix",
    "ContentAttention",
    "ContextBlock",
    "ContextDownsample",
    "Connectivity",
    "ConnectivityPredictor",
    "ConvDownsample",
    "ConvPatchStem",
    "ConvStem",
    "CosineGlobalAttention",
    "CosineWindowAttention",
    "CrossShapedAttention",
    "DAS",
    "DeformableAttention",
    "DeformableMerging",
    "DepthwiseConvolution",
    "DepthwiseMlp",
    "DilatedReparam",
    "DistanceAttention",
    "EfficientAttention",
    "DynamicPartialConvolution",
    "EfficientMixer",
    "EnhancedAttention",
    "FlowAttention",
    "FocusedLinearAttention",
    "GatedAttention",
    "GatedConvolution",
    "GatedLinearUnit",
    "GlobalAttention",
    "GlobalLocalFilter",
    "HaloAttention",
    "GramianHead",
    "GramianToken",
    "HeadRouter",
    "HiLoAttention",
    "InlineAttention",
    "LengthNorm",
    "MapBatchNorm",
    "MemoryAttention",
    "MoHAggregatedAttention",
    "MoHCosineGlobalAttention",
    "MiddleTokenEmbedding",
    "MultiScaleDeformableAttention",
    "NeighborhoodAttention",
    "NestedBlock",
    "NetworkGate",
    "NormalizedAttention",
    "NormedDownsample",
    "OverlapStem",
    "OversizedConvolution",
    "PartialChannelAttention",
    "PartialConvolution",
    "PartialSelfAttention",
    "PatchDownsample",
    "PatchMerging",
    "PatchStem",
    "PolarizedAttention",
    "PolarizedMixer",
    "PooledAttention",
    "PooledMlpHead",
    "PairBias",
    "Pooling",
    "PositionEmbedding",
    "PositionedDownsample",
    "PositionedMerging",
    "PostNormMerging",
    "ProjectedHead",
    "RMSNorm",
    "RecurrentCacheAttention",
    "RecursiveGatedConvolution",
    "RelativeAttention",
    "RelativeVectors",
    "ResidualDepthwise",
    "RotaryPosition",
    "SelectiveScan",
    "SeparableConvolution",
    "SigmoidAttention",
    "SinkhornAttention",
    "SlideAttention",
    "SparsifiedAttention",
    "SpatialReductionAttention",
    "SpectralFilter",
    "StaticBlock",
    "StridedBottleneckAttention",
    "StridedHaloAttention",
    "TalkingHeadsAttention",
    "TaylorAttention",
    "TokenAttention",
    "TokenPooling",
    "TripletAttention",
    "ULSAM",
    "WindowAttention",
    "WordMerging",
    "WordPath",
    "WordPositions",
    "WordStem",
    "attach",
    "average_cells",
    "batch_norm",
    "create_gate",
    "create_mixer",
    "create_norm",
    "fuse",
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
    "resize_pairs",
    "resize_table",
    "resize_vectors",
    "split_class",
    "splits_for",
    "unknown",
    "watch_imbalance",
]
