# SPDX-License-Identifier: Apache-2.0
"""Mask2Former on va_dinat_large_384_11x11, instances of COCO, 100 epochs.

    visionattn train coco/mask2former_dinat-large_100e

The authors' settings, on mmdet's Mask2Former. Published: mask AP 50.8.
"""

_base_ = ["mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py"]
custom_imports = dict(imports=["visionattn.openmmlab"], allow_failed_imports=False)

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
    panoptic_head=dict(in_channels="auto", num_queries=200),
    init_cfg=None,
)
# The backbone learns at a tenth of the rate; vectors, tables and embeddings are not decayed.
optim_wrapper = dict(
    constructor="TimmParamGroups",
    paramwise_cfg=dict(_delete_=True, backbone_lr_mult=0.1, spared=("query_embed", "query_feat", "level_embed")),
)

# 100 epochs of 16 images; the rate falls at the same shares of the run as in the base.
max_iters = 737500
train_cfg = dict(max_iters=max_iters, dynamic_intervals=[(max_iters // 5000 * 5000 + 1, max_iters)])
param_scheduler = dict(end=max_iters, milestones=[655556, 710184])
