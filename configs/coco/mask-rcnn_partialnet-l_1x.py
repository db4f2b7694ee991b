# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_partialnet_l, COCO, 1x.

    visionattn train coco/mask-rcnn_partialnet-l_1x

The authors' settings; the backbones that they have for detection are older ones of other sizes. No figure is known.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "../_base_/schedules/coco_1x_pvt.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_partialnet_l", pretrained=False))
optim_wrapper = dict(optimizer=dict(lr=1e-4))
