# SPDX-License-Identifier: Apache-2.0
"""Semantic FPN on va_datpp_tiny, ADE20K, 40k.

    visionattn train ade20k/semantic-fpn_datpp-tiny_40k

The authors' settings, on eight GPUs with four images each. Published: mIoU 48.4, 48.8 at several scales.
"""

_base_ = [
    "../_base_/models/semantic-fpn.py",
    "mmseg::_base_/datasets/ade20k.py",
    "../_base_/schedules/ade20k_40k_fpn.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_datpp_tiny", drop_path_rate=0.4))
