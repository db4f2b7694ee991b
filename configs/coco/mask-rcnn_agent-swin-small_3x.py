# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_agent_swin_small, COCO, 3x.

    visionattn train coco/mask-rcnn_agent-swin-small_3x

The authors' settings. Published: box AP 48.9, mask AP 43.8.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/coco_3x.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_agent_swin_small", drop_path_rate=0.1))
