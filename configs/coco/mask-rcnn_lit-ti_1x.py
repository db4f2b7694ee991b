# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_lit_ti, COCO, 1x.

    visionattn train coco/mask-rcnn_lit-ti_1x

The authors' settings. Published: box AP 42.0, mask AP 39.1.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "../_base_/schedules/coco_1x_pvt.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_lit_ti", drop_path_rate=0.1))
