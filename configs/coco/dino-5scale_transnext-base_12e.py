# SPDX-License-Identifier: Apache-2.0
"""DINO with five scales on va_transnext_base, COCO, 12 epochs.

    visionattn train coco/dino-5scale_transnext-base_12e

The authors' settings. Published: box AP 57.1.
"""

_base_ = ["mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py"]
custom_imports = dict(imports=["visionattn.openmmlab"], allow_failed_imports=False)

model = dict(
    num_feature_levels=5,
    backbone=dict(
        _delete_=True,
        type="TimmBackbone",
        name="va_transnext_base",
        pretrained=True,
        drop_path_rate=0.6,
        img_size=800,
        out_indices=(0, 1, 2, 3),
    ),
    neck=dict(in_channels="auto", num_outs=5),
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_levels=5))),
    decoder=dict(layer_cfg=dict(cross_attn_cfg=dict(num_levels=5))),
)
