# SPDX-License-Identifier: Apache-2.0
"""UPerNet on va_hornet_base_gf, ADE20K, 160k.

    visionattn train ade20k/upernet_hornet-base-gf_160k

The authors' settings. Published: mIoU 50.5, 50.9 at several scales.
"""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_batch2.py",
    "../_base_/schedules/ade20k_160k.py",
    "../_base_/dense_runtime.py",
]

model = dict(
    backbone=dict(name="va_hornet_base_gf", drop_path_rate=0.5, filter_sizes=(None, None, (24, 13), (12, 7))),
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(341, 341)),
)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    constructor="TimmParamGroups",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(layer_decay=0.9, stage_layers=(1, 1, 1, 1)),
)
