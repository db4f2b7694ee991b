# SPDX-License-Identifier: Apache-2.0
"""Attention ops: tensors in, tensors out. Layout (B, *spatial, heads, head_dim), any strides."""

from visionattn.kernels.aggregated import aggregated_attention
from visionattn.kernels.clustered import clustered_attention
from visionattn.kernels.deformable import deformable_attention, ms_deform_attn, sample_points
from visionattn.kernels.dispatch import available_backends, explain, use_backend
from visionattn.kernels.dynamic import dynamic_convolution
from visionattn.kernels.indexed import indexed_attention
from visionattn.kernels.linear import (
    agent_attention,
    flow_attention,
    focused_linear_attention,
    inline_attention,
)
from visionattn.kernels.local import halo_attention, local_attention, neighborhood_attention, window_attention
from visionattn.kernels.pattern import LocalPattern
from visionattn.kernels.relative import relative_attention
from visionattn.kernels.routed import routed_attention
from visionattn.kernels.scan import selective_scan
from visionattn.kernels.selected import selected_attention

__all__ = [
    "LocalPattern",
    "agent_attention",
    "aggregated_attention",
    "available_backends",
    "clustered_attention",
    "deformable_attention",
    "dynamic_convolution",
    "explain",
    "flow_attention",
    "focused_linear_attention",
    "halo_attention",
    "indexed_attention",
    "inline_attention",
    "local_attention",
    "ms_deform_attn",
    "neighborhood_attention",
    "relative_attention",
    "routed_attention",
    "sample_points",
    "selected_attention",
    "selective_scan",
    "use_backend",
    "window_attention",
]
