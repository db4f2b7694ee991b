# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_agent_pvt_medium, COCO, 1x.

    visionattn train coco/mask-rcnn_agent-pvt-medium_1x

The authors' settings. Published: box AP 45.9, mask AP 42.0.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "../_base_/schedules/coco_1x_pvt.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_agent_pvt_medium", drop_path_rate=0.1))
