# SPDX-License-Identifier: Apache-2.0
"""UPerNet on va_flatten_swin_tiny, ADE20K, 160k.

    visionattn train ade20k/upernet_flatten-swin-tiny_160k

The authors published no code for it; this is Swin's recipe. No figure is known.
"""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_batch2.py",
    "../_base_/schedules/ade20k_160k.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_flatten_swin_tiny", drop_path_rate=0.3))
