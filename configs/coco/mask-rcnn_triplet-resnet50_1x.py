# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_triplet_resnet50, COCO, 1x.

    visionattn train coco/mask-rcnn_triplet-resnet50_1x

MMDetection's settings of ResNets: the stem and the first stage are frozen, batch norms keep their statistics.
Published: box AP 39.8, mask AP 35.8 with Detectron2.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "../_base_/schedules/coco_1x_sgd.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_triplet_resnet50", frozen_stages=1, norm_eval=True))
