# SPDX-License-Identifier: Apache-2.0
"""RetinaNet on va_lit_ti, COCO, 1x.

    visionattn train coco/retinanet_lit-ti_1x

The authors' settings. Published: box AP 41.6.
"""

_base_ = [
    "../_base_/models/retinanet.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "../_base_/schedules/coco_1x_pvt.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_lit_ti", drop_path_rate=0.1))
optim_wrapper = dict(optimizer=dict(lr=1e-4))
