# SPDX-License-Identifier: Apache-2.0
"""Cascade Mask R-CNN on va_datpp_small, COCO, 3x.

    visionattn train coco/cascade-mask-rcnn_datpp-small_3x

The authors' settings, on 32 GPUs with two images each. Published: box AP 54.2, mask AP 46.9.
"""

_base_ = [
    "../_base_/models/cascade-mask-rcnn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/coco_3x.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_datpp_small", drop_path_rate=0.5))
optim_wrapper = dict(optimizer=dict(lr=4e-4))
