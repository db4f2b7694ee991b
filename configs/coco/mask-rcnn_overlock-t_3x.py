# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_overlock_t, COCO, 3x.

    visionattn train coco/mask-rcnn_overlock-t_3x

The authors' settings. Published: box AP 49.6, mask AP 43.9.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/coco_3x.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_overlock_t", drop_path_rate=0.2, overview_neck=True))
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))
