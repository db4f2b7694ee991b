# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_datpp_tiny, COCO, 1x.

    visionattn train coco/mask-rcnn_datpp-tiny_1x

The authors' settings, on 32 GPUs with two images each; they trained in mixed precision. Published: box AP 48.7, mask
AP 43.7.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/coco_1x.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_datpp_tiny", drop_path_rate=0.0))
optim_wrapper = dict(optimizer=dict(lr=4e-4))
