# SPDX-License-Identifier: Apache-2.0
"""RetinaNet on va_biformer_small, COCO, 1x.

    visionattn train coco/retinanet_biformer-small_1x

The authors' settings; they trained in mixed precision. Published: box AP 45.9.
"""

_base_ = [
    "../_base_/models/retinanet.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "../_base_/schedules/coco_1x_pvt.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_biformer_small", drop_path_rate=0.2, num_regions=16, norm_eval=True))
optim_wrapper = dict(optimizer=dict(lr=1e-4))
