# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_agent_pvt_small, COCO, 1x.

    visionattn train coco/mask-rcnn_agent-pvt-small_1x

The authors' settings. Published: box AP 44.5, mask AP 41.2.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "../_base_/schedules/coco_1x_pvt.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_agent_pvt_small", drop_path_rate=0.2))
