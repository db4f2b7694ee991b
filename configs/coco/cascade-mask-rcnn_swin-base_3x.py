# SPDX-License-Identifier: Apache-2.0
"""Cascade Mask R-CNN on va_swin_base, COCO, 3x.

    visionattn train coco/cascade-mask-rcnn_swin-base_3x

The authors' settings (Swin-Transformer-Object-Detection); they trained in mixed precision. Published: box AP 51.9,
mask AP 45.0.
"""

_base_ = [
    "../_base_/models/cascade-mask-rcnn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/coco_3x.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_swin_base", drop_path_rate=0.3))
