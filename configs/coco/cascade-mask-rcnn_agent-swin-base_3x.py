# SPDX-License-Identifier: Apache-2.0
"""Cascade Mask R-CNN on va_agent_swin_base, COCO, 3x.

    visionattn train coco/cascade-mask-rcnn_agent-swin-base_3x

The authors' settings. Published: box AP 52.6, mask AP 45.3.
"""

_base_ = [
    "../_base_/models/cascade-mask-rcnn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/coco_3x.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_agent_swin_base", drop_path_rate=0.4))
