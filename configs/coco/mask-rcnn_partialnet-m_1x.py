# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on va_partialnet_m, COCO, 1x.

    visionattn train coco/mask-rcnn_partialnet-m_1x

The authors' settings; the backbones that they have for detection are older ones of other sizes. No figure is known.
"""

_base_ = "./mask-rcnn_partialnet-s_1x.py"

model = dict(backbone=dict(name="va_partialnet_m"))
