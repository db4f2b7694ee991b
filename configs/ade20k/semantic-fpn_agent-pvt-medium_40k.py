# SPDX-License-Identifier: Apache-2.0
"""Semantic FPN on va_agent_pvt_medium, ADE20K, 40k.

    visionattn train ade20k/semantic-fpn_agent-pvt-medium_40k

The authors' settings, two images a GPU. Published: mIoU 44.3.
"""

_base_ = [
    "../_base_/models/semantic-fpn.py",
    "../_base_/datasets/ade20k_batch2.py",
    "../_base_/schedules/ade20k_40k_fpn.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_agent_pvt_medium", drop_path_rate=0.2))
