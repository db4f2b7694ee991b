# SPDX-License-Identifier: Apache-2.0
"""UPerNet on va_swin_tiny, ADE20K, 160k.

    visionattn train ade20k/upernet_swin-tiny_160k

The authors' settings (Swin-Transformer-Semantic-Segmentation); they trained in mixed precision. Published: mIoU
44.51, 45.81 at several scales.
"""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_batch2.py",
    "../_base_/schedules/ade20k_160k.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_swin_tiny", drop_path_rate=0.3))
