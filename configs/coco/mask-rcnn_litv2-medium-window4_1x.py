# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_litv2_medium, COCO, 1x.

    visionattn train coco/mask-rcnn_litv2-medium-window4_1x

The authors' settings. Published: box AP 46.5, mask AP 42.0.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "../_base_/schedules/coco_1x_pvt.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_litv2_medium", drop_path_rate=0.2, output_norms=(1, 2, 3), windows=(0, 0, 4, 1)))
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=dict(norm=dict(decay_mult=0.0), rpb=dict(decay_mult=0.0))),
)
