# SPDX-License-Identifier: Apache-2.0
"""Cascade Mask R-CNN on va_agent_swin_tiny, COCO, 3x.

    visionattn train coco/cascade-mask-rcnn_agent-swin-tiny_3x

The authors' settings. Published: box AP 51.4, mask AP 44.5.
"""

_base_ = [
    "../_base_/models/cascade-mask-rcnn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/coco_3x.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_agent_swin_tiny", drop_path_rate=0.1))
