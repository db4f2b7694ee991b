# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_overlock_s, COCO, 3x.

    visionattn train coco/mask-rcnn_overlock-s_3x

The authors' settings. Published: box AP 51.0, mask AP 45.0.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/coco_3x.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_overlock_s", drop_path_rate=0.4, overview_neck=True))
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))
