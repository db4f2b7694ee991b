# SPDX-License-Identifier: Apache-2.0
"""UPerNet on va_overlock_b, ADE20K, 160k.

    visionattn train ade20k/upernet_overlock-b_160k

The authors' settings. Published: mIoU 51.7.
"""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_batch2.py",
    "../_base_/schedules/ade20k_160k.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_overlock_b", drop_path_rate=0.5))
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))
