# SPDX-License-Identifier: Apache-2.0
"""Cascade Mask R-CNN on va_parcnetv2_base, COCO, 3x.

    visionattn train coco/cascade-mask-rcnn_parcnetv2-base_3x

The authors' settings. No figure is known.
"""

_base_ = [
    "../_base_/models/cascade-mask-rcnn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/coco_3x.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_parcnetv2_base", drop_path_rate=0.7))
optim_wrapper = dict(
    constructor="TimmParamGroups",
    optimizer=dict(lr=2e-4),
    paramwise_cfg=dict(_delete_=True, layer_decay=0.8, layer_blocks=3),
)
