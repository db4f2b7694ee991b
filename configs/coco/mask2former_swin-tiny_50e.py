# SPDX-License-Identifier: Apache-2.0
"""Mask2Former on va_swin_tiny, instances of COCO, 50 epochs.

    visionattn train coco/mask2former_swin-tiny_50e

mmdet's settings of Swin-T. mmdet's figure is in its model zoo.
"""

_base_ = ["mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py"]
custom_imports = dict(imports=["visionattn.openmmlab"], allow_failed_imports=False)

model = dict(
    backbone=dict(_delete_=True, type="TimmBackbone", name="va_swin_tiny", pretrained=True, drop_path_rate=0.3),
    panoptic_head=dict(in_channels="auto"),
    init_cfg=None,
)
# The backbone learns at a tenth of the rate; vectors, tables and embeddings are not decayed.
optim_wrapper = dict(
    constructor="TimmParamGroups",
    paramwise_cfg=dict(_delete_=True, backbone_lr_mult=0.1, spared=("query_embed", "query_feat", "level_embed")),
)
