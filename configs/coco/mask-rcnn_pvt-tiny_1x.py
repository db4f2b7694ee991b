# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_pvt_tiny, COCO, 1x.

    visionattn train coco/mask-rcnn_pvt-tiny_1x

The settings of PVT, as Twins' authors give them. No figure is known.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "../_base_/schedules/coco_1x_pvt.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_pvt_tiny", pretrained=False))
