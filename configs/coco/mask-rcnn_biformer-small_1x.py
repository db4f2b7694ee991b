# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_biformer_small, COCO, 1x.

    visionattn train coco/mask-rcnn_biformer-small_1x

The authors' settings; they trained in mixed precision. Published: box AP 47.8, mask AP 43.2.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "../_base_/schedules/coco_1x.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_biformer_small", drop_path_rate=0.2, num_regions=16, norm_eval=True))
