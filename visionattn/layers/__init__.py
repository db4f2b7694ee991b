# SPDX-License-Identifier: Apache-2.0
"""Modules made of kernels: token mixers, stems, downsamplers, blocks."""

from .attention import GlobalAttention, NeighborhoodAttention, RelativeAttention, WindowAttention, resize_table
from .block import Block
from .embed import DOWNSAMPLERS, STEMS, ConvDownsample, ConvStem, PatchMerging, PatchStem, PositionEmbedding
from .init import init_linear, init_table
from .mixers import MIXERS, create_mixer
from .names import pick, unknown
from .padding import pad_map, pad_to_multiple, pad_to_size

__all__ = [
    "DOWNSAMPLERS",
    "MIXERS",
    "STEMS",
    "Block",
    "ConvDownsample",
    "ConvStem",
    "GlobalAttention",
    "NeighborhoodAttention",
    "PatchMerging",
    "PatchStem",
    "PositionEmbedding",
    "RelativeAttention",
    "WindowAttention",
    "create_mixer",
    "init_linear",
    "init_table",
    "pad_map",
    "pad_to_multiple",
    "pad_to_size",
    "pick",
    "resize_table",
    "unknown",
]
