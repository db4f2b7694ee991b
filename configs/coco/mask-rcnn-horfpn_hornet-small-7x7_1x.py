# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_hornet_small_7x7 with HorNet's feature pyramid, COCO, 1x.

    visionattn train coco/mask-rcnn-horfpn_hornet-small-7x7_1x

The authors' pyramid; optimizer and decay by layer are those of their Cascade Mask R-CNN. No figure is known.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "../_base_/schedules/coco_1x.py",
    "../_base_/dense_runtime.py",
]
custom_imports = dict(imports=["visionattn.openmmlab", "visionattn.openmmlab.heads.horfpn"])

model = dict(backbone=dict(name="va_hornet_small_7x7", drop_path_rate=0.6), neck=dict(type="HorFPN"))
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    constructor="TimmParamGroups",
    optimizer=dict(type="AdamW", lr=2e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(layer_decay=0.7, stage_layers=(1, 1, 9, 1)),
)
