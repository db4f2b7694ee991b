# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_dinat_mini, COCO, 3x.

    visionattn train coco/mask-rcnn_dinat-mini_3x

The authors' settings; they trained in mixed precision. Published: box AP 47.2, mask AP 42.5.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/coco_3x.py",
    "../_base_/dense_runtime.py",
]

# Dilations of every block, for maps of this size.
dilations = (
    (1, 28, 1),
    (1, 7, 1, 14),
    (1, 3, 1, 5, 1, 7),
    (1, 3, 1, 3, 1),
)

model = dict(backbone=dict(name="va_dinat_mini", drop_path_rate=0.2, dilations=dilations))
