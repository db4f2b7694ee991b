# SPDX-License-Identifier: Apache-2.0
"""Cascade Mask R-CNN on va_dinat_base, COCO, 3x.

    visionattn train coco/cascade-mask-rcnn_dinat-base_3x

The authors' settings; they trained in mixed precision. Published: box AP 53.4, mask AP 46.2.
"""

_base_ = [
    "../_base_/models/cascade-mask-rcnn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/coco_3x.py",
    "../_base_/dense_runtime.py",
]

# Dilations of every block, for maps of this size.
dilations = (
    (1, 28, 1),
    (1, 7, 1, 14),
    (1, 3, 1, 5, 1, 7) * 3,
    (1, 3, 1, 3, 1),
)

model = dict(backbone=dict(name="va_dinat_base", drop_path_rate=0.6, dilations=dilations))
optim_wrapper = dict(optimizer=dict(lr=7.5e-5))
