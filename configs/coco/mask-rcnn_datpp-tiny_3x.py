# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_datpp_tiny, COCO, 3x.

    visionattn train coco/mask-rcnn_datpp-tiny_3x

The authors' settings, on 32 GPUs with two images each; they trained in mixed precision. Published: box AP 50.5, mask
AP 45.1.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/coco_3x.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_datpp_tiny", drop_path_rate=0.3))
optim_wrapper = dict(optimizer=dict(lr=4e-4))
