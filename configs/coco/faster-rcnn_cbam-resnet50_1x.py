# SPDX-License-Identifier: Apache-2.0
"""Faster R-CNN on va_cbam_resnet50, COCO, 1x.

    visionattn train coco/faster-rcnn_cbam-resnet50_1x

MMDetection's settings of ResNets: the stem and the first stage are frozen, batch norms keep their statistics. No
figure is known.
"""

_base_ = [
    "../_base_/models/faster-rcnn.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "../_base_/schedules/coco_1x_sgd.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_cbam_resnet50", frozen_stages=1, norm_eval=True))
