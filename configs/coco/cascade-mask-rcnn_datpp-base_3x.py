# SPDX-License-Identifier: Apache-2.0
"""Cascade Mask R-CNN on va_datpp_base, COCO, 3x.

    visionattn train coco/cascade-mask-rcnn_datpp-base_3x

The authors' settings, on 32 GPUs with one image each. Published: box AP 54.5, mask AP 47.0.
"""

_base_ = [
    "../_base_/models/cascade-mask-rcnn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/coco_3x.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_datpp_base", drop_path_rate=0.8))
optim_wrapper = dict(optimizer=dict(lr=4e-4))
