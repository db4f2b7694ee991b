# SPDX-License-Identifier: Apache-2.0
"""RetinaNet on timm's shvit_s4, COCO, 1x.

    visionattn train coco/retinanet_shvit-s4_1x

The maps have strides 16, 32 and 64, and the pyramid goes on to 256; anchors are as large as RetinaNet's are. The figure
is of the authors' own neck, which upsamples by transposed convolutions. Published: box AP 38.8.
"""

_base_ = [
    "../_base_/models/retinanet.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "../_base_/schedules/coco_1x_pvt.py",
    "../_base_/dense_runtime.py",
]

model = dict(
    backbone=dict(name="shvit_s4"),
    bbox_head=dict(anchor_generator=dict(octave_base_scale=2, strides=[16, 32, 64, 128, 256])),
)
