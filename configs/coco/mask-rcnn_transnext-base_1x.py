# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_transnext_base, COCO, 1x.

    visionattn train coco/mask-rcnn_transnext-base_1x

The authors' settings. Published: box AP 51.7, mask AP 45.9.
"""

_base_ = [
    "../_base_/models/mask-rcnn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "../_base_/schedules/coco_1x.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_transnext_base", drop_path_rate=0.7, img_size=800))
optim_wrapper = dict(
    constructor="TimmParamGroups", paramwise_cfg=dict(_delete_=True, spared=("norm", "query_embed", "temperature"))
)
