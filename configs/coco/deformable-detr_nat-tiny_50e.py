# SPDX-License-Identifier: Apache-2.0
"""Deformable DETR on va_nat_tiny, COCO, 50 epochs.

    visionattn train coco/deformable-detr_nat-tiny_50e

mmdet's settings of ResNet-50. No figure is known.
"""

_base_ = ["mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py"]
custom_imports = dict(imports=["visionattn.openmmlab"], allow_failed_imports=False)

model = dict(
    backbone=dict(_delete_=True, type="TimmBackbone", name="va_nat_tiny", pretrained=True, out_indices=(1, 2, 3)),
    neck=dict(in_channels="auto"),
)
