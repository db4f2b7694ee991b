# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_overlock_b, COCO, 3x.

    visionattn train coco/mask-rcnn_overlock-b_3x

The authors' settings. Published: box AP 51.4, mask AP 45.3.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/coco_3x.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_overlock_b", drop_path_rate=0.6, overview_neck=True))
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))
