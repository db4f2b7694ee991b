# SPDX-License-Identifier: Apache-2.0
"""Attention ops: tensors in, tensors out. Layout (B, *spatial, heads, head_dim), any strides."""

from visionattn.kernels.dispatch import available_backends, explain, use_backend
from visionattn.kernels.local import halo_attention, local_attention, neighborhood_attention, window_attention
from visionattn.kernels.pattern import LocalPattern
from visionattn.kernels.routed import routed_attention

__all__ = [
    "LocalPattern",
    "available_backends",
    "explain",
    "halo_attention",
    "local_attention",
    "neighborhood_attention",
    "routed_attention",
    "use_backend",
    "window_attention",
]
