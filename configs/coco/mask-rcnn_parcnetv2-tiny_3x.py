# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_parcnetv2_tiny, COCO, 3x.

    visionattn train coco/mask-rcnn_parcnetv2-tiny_3x

The authors' settings. No figure is known.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/coco_3x.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_parcnetv2_tiny", drop_path_rate=0.4))
optim_wrapper = dict(
    constructor="TimmParamGroups",
    paramwise_cfg=dict(_delete_=True, layer_decay=0.95, layer_blocks=3),
)
