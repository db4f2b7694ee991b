# SPDX-License-Identifier: Apache-2.0
"""DINO with four scales on va_transnext_tiny, COCO, 12 epochs.

    visionattn train coco/dino-4scale_transnext-tiny_12e

The authors' settings. Published: box AP 55.1.
"""

_base_ = ["mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py"]
custom_imports = dict(imports=["visionattn.openmmlab"], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type="TimmBackbone",
        name="va_transnext_tiny",
        pretrained=True,
        drop_path_rate=0.3,
        img_size=800,
        out_indices=(1, 2, 3),
    ),
    neck=dict(in_channels="auto"),
)
