# SPDX-License-Identifier: Apache-2.0
"""Cascade Mask R-CNN on va_dinat_s_tiny, COCO, 3x.

    visionattn train coco/cascade-mask-rcnn_dinat-s-tiny_3x

The authors' settings; they trained in mixed precision. Published: box AP 51.0, mask AP 44.1.
"""

_base_ = [
    "../_base_/models/cascade-mask-rcnn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/coco_3x.py",
    "../_base_/dense_runtime.py",
]

# Dilations of every block, for maps of this size.
dilations = (
    (1, 28),
    (1, 14),
    (1, 3, 1, 5, 1, 7),
    (1, 3),
)

model = dict(backbone=dict(name="va_dinat_s_tiny", drop_path_rate=0.3, dilations=dilations))
