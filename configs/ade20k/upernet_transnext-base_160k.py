# SPDX-License-Identifier: Apache-2.0
"""UPerNet on va_transnext_base, ADE20K, 160k.

    visionattn train ade20k/upernet_transnext-base_160k

The authors' settings. Published: mIoU 53.0.
"""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_batch2.py",
    "../_base_/schedules/ade20k_160k.py",
    "../_base_/dense_runtime.py",
]

model = dict(
    backbone=dict(name="va_transnext_base", drop_path_rate=0.7),
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(341, 341)),
)
optim_wrapper = dict(
    constructor="TimmParamGroups",
    optimizer=dict(weight_decay=0.05),
    paramwise_cfg=dict(_delete_=True, spared=("norm", "query_embed", "temperature")),
)
