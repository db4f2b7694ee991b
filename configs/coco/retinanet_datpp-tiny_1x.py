# SPDX-License-Identifier: Apache-2.0
"""RetinaNet on va_datpp_tiny, COCO, 1x.

    visionattn train coco/retinanet_datpp-tiny_1x

The authors' settings, on 32 GPUs with two images each; they trained in mixed precision. Published: box AP 46.8.
"""

_base_ = [
    "../_base_/models/retinanet.py",
    "../_base_/datasets/coco_detection_multiscale.py",
    "../_base_/schedules/coco_1x.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_datpp_tiny", drop_path_rate=0.0))
optim_wrapper = dict(optimizer=dict(lr=2e-4))
