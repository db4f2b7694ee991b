# SPDX-License-Identifier: Apache-2.0
"""Semantic FPN on va_parcnetv2_tiny, ADE20K, 40k.

    visionattn train ade20k/semantic-fpn_parcnetv2-tiny_40k

The authors' settings. No figure is known.
"""

_base_ = [
    "../_base_/models/semantic-fpn.py",
    "../_base_/datasets/ade20k_batch2.py",
    "../_base_/schedules/ade20k_40k_fpn.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_parcnetv2_tiny", drop_path_rate=0.2))
optim_wrapper = dict(optimizer=dict(lr=1e-4))
