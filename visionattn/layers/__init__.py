# SPDX-License-Identifier: Apache-2.0
"""Modules made of kernels: token mixers, stems, downsamplers, blocks, gates."""

from .attach import PLACES, attach
from .attention import GlobalAttention, NeighborhoodAttention, RelativeAttention, WindowAttention, resize_table
from .batch_norm import batch_norm
from .bilevel import BilevelAttention, EnhancedAttention
from .block import Block
from .cbam import BAM, CBAM
from .convolution import GatedConvolution, SeparableConvolution
from .cosine import CosineWindowAttention
from .cross_shaped import CrossShapedAttention
from .das import DAS
from .efficient import EfficientAttention
from .embed import (
    DOWNSAMPLERS,
    STEMS,
    ConditionalPosition,
    ConvDownsample,
    ConvStem,
    OverlapStem,
    PatchDownsample,
    PatchMerging,
    PatchStem,
    PositionEmbedding,
    PostNormMerging,
)
from .gates import GATES, create_gate
from .head import HEADS, pool_type_of
from .init import init_conv, init_conv_fan_out, init_linear, init_table
from .mixers import MIXERS, create_mixer
from .mlp import MLPS, DepthwiseMlp
from .names import pick, unknown
from .norm import NORMS, MapBatchNorm, create_norm
from .padding import pad_map, pad_to_multiple, pad_to_size
from .polarized import PolarizedAttention
from .spatial_reduction import PooledAttention, SpatialReductionAttention
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
    "BAM",
    "BilevelAttention",
    "Block",
    "CBAM",
    "ConditionalPosition",
    "ConvDownsample",
    "ConvStem",
    "CosineWindowAttention",
    "CrossShapedAttention",
    "DAS",
    "DepthwiseMlp",
    "EfficientAttention",
    "EnhancedAttention",
    "GatedConvolution",
    "GlobalAttention",
    "MapBatchNorm",
    "NeighborhoodAttention",
    "OverlapStem",
    "PatchDownsample",
    "PatchMerging",
    "PatchStem",
    "PolarizedAttention",
    "PooledAttention",
    "PositionEmbedding",
    "PostNormMerging",
    "RelativeAttention",
    "SeparableConvolution",
    "SpatialReductionAttention",
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
    "init_linear",
    "init_table",
    "pad_map",
    "pad_to_multiple",
    "pad_to_size",
    "pick",
    "pool_type_of",
    "resize_table",
    "unknown",
]
