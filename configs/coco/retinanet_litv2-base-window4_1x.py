# SPDX-License-Identifier: Apache-2.0
"""RetinaNet on va_litv2_base, COCO, 1x.

    visionattn train coco/retinanet_litv2-base-window4_1x

The authors' settings. Published: box AP 46.3.
"""

_base_ = [
    "../_base_/models/retinanet.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "../_base_/schedules/coco_1x_pvt.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_litv2_base", drop_path_rate=0.3, output_norms=(1, 2, 3), windows=(0, 0, 4, 1)))
optim_wrapper = dict(
    optimizer=dict(lr=1e-4),
    paramwise_cfg=dict(custom_keys=dict(norm=dict(decay_mult=0.0), rpb=dict(decay_mult=0.0))),
)
