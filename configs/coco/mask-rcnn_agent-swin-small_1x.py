# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_agent_swin_small, COCO, 1x.

    visionattn train coco/mask-rcnn_agent-swin-small_1x

The authors' settings. Published: box AP 47.2, mask AP 42.7.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/coco_1x.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_agent_swin_small", drop_path_rate=0.1))
