# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_overlock_b, COCO, 1x.

    visionattn train coco/mask-rcnn_overlock-b_1x

The authors' settings. Published: box AP 49.9, mask AP 44.4.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "../_base_/schedules/coco_1x.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_overlock_b", drop_path_rate=0.6, overview_neck=True))
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(norm_decay_mult=0.0))
