# SPDX-License-Identifier: Apache-2.0
"""Cascade Mask R-CNN on va_nat_small, COCO, 3x.

    visionattn train coco/cascade-mask-rcnn_nat-small_3x

The authors' settings; they trained in mixed precision. Published: box AP 52.0, mask AP 44.9.
"""

_base_ = [
    "../_base_/models/cascade-mask-rcnn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/coco_3x.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_nat_small", drop_path_rate=0.3))
