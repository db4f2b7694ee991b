# SPDX-License-Identifier: Apache-2.0
"""ATSS with six blocks of Dynamic Head on va_swin_tiny, COCO, 12 epochs.

    visionattn train coco/atss-dyhead_swin-tiny_1x

AdamW as the authors train Swin-T for 24 epochs; the rest is mmdet's for ResNet-50. No figure is known.
"""

_base_ = ["mmdet::dyhead/atss_r50_fpn_dyhead_1x_coco.py"]
custom_imports = dict(imports=["visionattn.openmmlab"], allow_failed_imports=False)

# The first neck is the FPN, the second the Dynamic Head.
fpn = dict(type="FPN", in_channels="auto", out_channels=256, add_extra_convs="on_output", num_outs=5)
model = dict(
    backbone=dict(
        _delete_=True,
        type="TimmBackbone",
        name="va_swin_tiny",
        pretrained=True,
        drop_path_rate=0.2,
        out_indices=(1, 2, 3),
    ),
    neck=[fpn, dict(type="DyHead", in_channels=256, out_channels=256, num_blocks=6)],
)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys={name: dict(decay_mult=0.0) for name in ("norm", "rpb", "pos_embed", "position.table")}
    ),
)
