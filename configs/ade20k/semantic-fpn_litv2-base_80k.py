# SPDX-License-Identifier: Apache-2.0
"""Semantic FPN on va_litv2_base, ADE20K, 80k.

    visionattn train ade20k/semantic-fpn_litv2-base_80k

The authors' settings. Published: mIoU 47.2.
"""

_base_ = [
    "../_base_/models/semantic-fpn.py",
    "../_base_/datasets/ade20k_batch2.py",
    "../_base_/schedules/ade20k_80k_fpn.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_litv2_base", drop_path_rate=0.3))
