# SPDX-License-Identifier: Apache-2.0
"""UPerNet on va_twins_pcpvt_small, ADE20K, 160k.

    visionattn train ade20k/upernet_twins-pcpvt-small_160k

The authors' settings. Published: mIoU 46.2, 47.5 at several scales.
"""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_batch2.py",
    "../_base_/schedules/ade20k_160k.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_twins_pcpvt_small", drop_path_rate=0.2))
