# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_biformer_base, COCO, 1x.

    visionattn train coco/mask-rcnn_biformer-base_1x

The authors' settings; they trained in mixed precision. Published: box AP 48.6, mask AP 43.7.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "../_base_/schedules/coco_1x.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_biformer_base", drop_path_rate=0.3, num_regions=16, norm_eval=True))
