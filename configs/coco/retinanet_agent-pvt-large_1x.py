# SPDX-License-Identifier: Apache-2.0
"""RetinaNet on va_agent_pvt_large, COCO, 1x.

    visionattn train coco/retinanet_agent-pvt-large_1x

The authors' settings. Published: box AP 46.8.
"""

_base_ = [
    "../_base_/models/retinanet.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "../_base_/schedules/coco_1x_pvt.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_agent_pvt_large", drop_path_rate=0.3))
optim_wrapper = dict(optimizer=dict(lr=1e-4))
