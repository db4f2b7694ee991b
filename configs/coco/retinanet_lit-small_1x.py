# SPDX-License-Identifier: Apache-2.0
"""RetinaNet on va_lit_small, COCO, 1x.

    visionattn train coco/retinanet_lit-small_1x

The authors' settings. Published: box AP 41.6.
"""

_base_ = [
    "../_base_/models/retinanet.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "../_base_/schedules/coco_1x_pvt.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_lit_small", drop_path_rate=0.2, output_norms=(1, 2, 3), img_size=800))
optim_wrapper = dict(
    optimizer=dict(lr=1e-4),
    paramwise_cfg=dict(custom_keys=dict(norm=dict(decay_mult=0.0), rpb=dict(decay_mult=0.0))),
)
