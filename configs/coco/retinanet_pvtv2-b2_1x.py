# SPDX-License-Identifier: Apache-2.0
"""RetinaNet on va_pvtv2_b2, COCO, 1x.

    visionattn train coco/retinanet_pvtv2-b2_1x

The settings of PVT, as Twins' authors give them. No figure is known.
"""

_base_ = [
    "../_base_/models/retinanet.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "../_base_/schedules/coco_1x_pvt.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_pvtv2_b2"))
optim_wrapper = dict(optimizer=dict(lr=1e-4))
