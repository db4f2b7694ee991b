# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_twins_pcpvt_base, COCO, 1x.

    visionattn train coco/mask-rcnn_twins-pcpvt-base_1x

The authors' settings (PVT's). No figure is known.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "../_base_/schedules/coco_1x_pvt.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_twins_pcpvt_base", drop_path_rate=0.2))
