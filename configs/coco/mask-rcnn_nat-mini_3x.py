# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_nat_mini, COCO, 3x.

    visionattn train coco/mask-rcnn_nat-mini_3x

The authors' settings; they trained in mixed precision. Published: box AP 46.5, mask AP 41.7.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/coco_3x.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_nat_mini", drop_path_rate=0.2))
