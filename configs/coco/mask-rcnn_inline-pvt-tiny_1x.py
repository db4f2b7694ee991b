# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_inline_pvt_tiny, COCO, 1x.

    visionattn train coco/mask-rcnn_inline-pvt-tiny_1x

The authors published no code for it; these are PVT's settings. No figure is known.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "../_base_/schedules/coco_1x_pvt.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_inline_pvt_tiny"))
