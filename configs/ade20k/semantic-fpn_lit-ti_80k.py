# SPDX-License-Identifier: Apache-2.0
"""Semantic FPN on va_lit_ti, ADE20K, 80k.

    visionattn train ade20k/semantic-fpn_lit-ti_80k

The authors' settings. Published: mIoU 41.3.
"""

_base_ = [
    "../_base_/models/semantic-fpn.py",
    "../_base_/datasets/ade20k_batch2.py",
    "../_base_/schedules/ade20k_80k_fpn.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_lit_ti", drop_path_rate=0.1))
