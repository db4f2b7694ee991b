# SPDX-License-Identifier: Apache-2.0
"""UPerNet on va_dinat_s_base, ADE20K, 160k.

    visionattn train ade20k/upernet_dinat-s-base_160k

The authors' settings; they trained in mixed precision. Published: mIoU 49.4, 50.2 at several scales.
"""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_batch2.py",
    "../_base_/schedules/ade20k_160k.py",
    "../_base_/dense_runtime.py",
]

# Dilations of every block, for maps of this size.
dilations = (
    (1, 16),
    (1, 8),
    (1, 2, 1, 3, 1, 4) * 3,
    (1, 2),
)

model = dict(backbone=dict(name="va_dinat_s_base", drop_path_rate=0.3, dilations=dilations))
