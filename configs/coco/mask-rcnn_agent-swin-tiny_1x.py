# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_agent_swin_tiny, COCO, 1x.

    visionattn train coco/mask-rcnn_agent-swin-tiny_1x

The authors' settings. Published: box AP 44.6, mask AP 40.7.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/coco_1x.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_agent_swin_tiny", drop_path_rate=0.1))
