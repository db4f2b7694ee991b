# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_inline_swin_tiny, COCO, 1x.

    visionattn train coco/mask-rcnn_inline-swin-tiny_1x

The authors published no code for it; this is Swin's recipe. No figure is known.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/coco_1x.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_inline_swin_tiny"))
