# SPDX-License-Identifier: Apache-2.0
"""DINO with four scales on va_biformer_small, COCO, 12 epochs.

    visionattn train coco/dino_biformer-small_12e

mmdet's settings of ResNet-50. No figure is known.
"""

_base_ = ["mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py"]
custom_imports = dict(imports=["visionattn.openmmlab"], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type="TimmBackbone",
        name="va_biformer_small",
        pretrained=True,
        drop_path_rate=0.2,
        out_indices=(1, 2, 3),
        num_regions=16,
    ),
    neck=dict(in_channels="auto"),
)
