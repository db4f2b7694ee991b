# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_agent_pvt_tiny, COCO, 1x.

    visionattn train coco/mask-rcnn_agent-pvt-tiny_1x

The authors' settings. Published: box AP 41.4, mask AP 38.7.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "../_base_/schedules/coco_1x_pvt.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_agent_pvt_tiny", drop_path_rate=0.1))
