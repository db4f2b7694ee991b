# SPDX-License-Identifier: Apache-2.0
"""Mask2Former on va_transnext_base, ADE20K, 160k.

    visionattn train ade20k/mask2former_transnext-base_160k

The authors' settings. Published: mIoU 54.7.
"""

_base_ = ["mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py"]
custom_imports = dict(imports=["mmdet.models", "visionattn.openmmlab"], allow_failed_imports=False)

model = dict(
    backbone=dict(_delete_=True, type="TimmBackbone", name="va_transnext_base", pretrained=True, drop_path_rate=0.6),
    decode_head=dict(in_channels="auto"),
)
# The backbone learns at a tenth of the rate; vectors, tables and embeddings are not decayed.
optim_wrapper = dict(
    constructor="TimmParamGroups",
    paramwise_cfg=dict(_delete_=True, backbone_lr_mult=0.1, spared=("query_embed", "query_feat", "level_embed")),
)
