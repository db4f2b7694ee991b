# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_mambaout_tiny, COCO, 1x.

    visionattn train coco/mask-rcnn_mambaout-tiny_1x

The paper trains with AdamW, a learning rate of 1e-4 and 16 images; the rest is Swin's recipe. No figure is known.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "../_base_/schedules/coco_1x.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_mambaout_tiny"))
