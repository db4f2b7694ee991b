# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_twins_svt_small, COCO, 3x.

    visionattn train coco/mask-rcnn_twins-svt-small_3x

The authors' settings (Swin's); they trained in mixed precision. No figure is known.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/coco_3x.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_twins_svt_small", drop_path_rate=0.2))
