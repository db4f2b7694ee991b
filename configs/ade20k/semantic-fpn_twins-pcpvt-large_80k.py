# SPDX-License-Identifier: Apache-2.0
"""Semantic FPN on va_twins_pcpvt_large, ADE20K, 80k.

    visionattn train ade20k/semantic-fpn_twins-pcpvt-large_80k

The authors' settings. No figure is known.
"""

_base_ = [
    "../_base_/models/semantic-fpn.py",
    "mmseg::_base_/datasets/ade20k.py",
    "../_base_/schedules/ade20k_80k_fpn.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_twins_pcpvt_large", drop_path_rate=0.2))
