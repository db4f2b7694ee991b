# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_overlock_t, COCO, 1x.

    visionattn train coco/mask-rcnn_overlock-t_1x

The authors' settings. Published: box AP 48.3, mask AP 43.3.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "../_base_/schedules/coco_1x.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_overlock_t", drop_path_rate=0.2, overview_neck=True))
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(norm_decay_mult=0.0))
