# SPDX-License-Identifier: Apache-2.0
"""Cascade Mask R-CNN on va_hornet_tiny_gf, COCO, 3x.

    visionattn train coco/cascade-mask-rcnn_hornet-tiny-gf_3x

The authors' settings. Published: box AP 52.4, mask AP 45.6.
"""

_base_ = [
    "../_base_/models/cascade-mask-rcnn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/coco_3x.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_hornet_tiny_gf", drop_path_rate=0.4))
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    constructor="TimmParamGroups",
    optimizer=dict(type="AdamW", lr=2e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(layer_decay=0.7, stage_layers=(1, 1, 9, 1)),
)
