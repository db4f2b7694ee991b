# SPDX-License-Identifier: Apache-2.0
"""Mask2Former on va_dinat_large_384_11x11, ADE20K, 160k.

    visionattn train ade20k/mask2former_dinat-large_160k

The authors' settings, on mmsegmentation's Mask2Former. Published: mIoU 58.1 at several scales.
"""

_base_ = ["mmseg::mask2former/mask2former_swin-l-in22k-384x384-pre_8xb2-160k_ade20k-640x640.py"]
custom_imports = dict(imports=["mmdet.models", "visionattn.openmmlab"], allow_failed_imports=False)

# Dilations of every block, for maps of this size.
dilations = (
    (1, 14, 1),
    (1, 4, 1, 7),
    (1, 2, 1, 3) * 4 + (1, 3),
    (1,) * 5,
)

model = dict(
    backbone=dict(
        _delete_=True,
        type="TimmBackbone",
        name="va_dinat_large_384_11x11",
        pretrained="in22k",
        drop_path_rate=0.3,
        dilations=dilations,
    ),
    decode_head=dict(in_channels="auto", num_queries=100),
)
# The backbone learns at a tenth of the rate; vectors, tables and embeddings are not decayed.
optim_wrapper = dict(
    constructor="TimmParamGroups",
    paramwise_cfg=dict(_delete_=True, backbone_lr_mult=0.1, spared=("query_embed", "query_feat", "level_embed")),
)
