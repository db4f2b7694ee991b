# SPDX-License-Identifier: Apache-2.0
"""RTMDet-L on va_mambaout_small, COCO, 100 epochs.

    visionattn train coco/rtmdet-l_mambaout-small_100e

mmdet's settings of RTMDet on Swin-B. No figure is known.
"""

_base_ = ["mmdet::rtmdet/rtmdet_l_swin_b_4xb32-100e_coco.py"]
custom_imports = dict(imports=["visionattn.openmmlab"], allow_failed_imports=False)

model = dict(
    data_preprocessor=dict(pad_size_divisor=32),  # the neck doubles maps
    backbone=dict(
        _delete_=True,
        type="TimmBackbone",
        name="va_mambaout_small",
        pretrained=True,
        drop_path_rate=0.3,
        out_indices=(1, 2, 3),
        grad_checkpointing=True,
    ),
    neck=dict(in_channels="auto"),
)
