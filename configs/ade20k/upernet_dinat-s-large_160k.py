# SPDX-License-Identifier: Apache-2.0
"""UPerNet on va_dinat_s_large, ADE20K, 160k.

    visionattn train ade20k/upernet_dinat-s-large_160k

The authors' settings. Published: mIoU 53.4, 54.6 at several scales.
"""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_640_batch2.py",
    "../_base_/schedules/ade20k_160k.py",
    "../_base_/dense_runtime.py",
]

# Dilations of every block, for maps of this size.
dilations = (
    (1, 20),
    (1, 10),
    (1, 2, 1, 3, 1, 4, 1, 5, 1, 2, 1, 3, 1, 4, 1, 5, 1, 5),
    (1, 2),
)

model = dict(
    backbone=dict(name="va_dinat_s_large", drop_path_rate=0.3, dilations=dilations, pretrained="in22k"),
    data_preprocessor=dict(size=(640, 640)),
)
