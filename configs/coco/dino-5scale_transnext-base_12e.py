# SPDX-License-Identifier: Apache-2.0
"""DINO with five scales on va_transnext_base, COCO, 12 epochs.

    visionattn train coco/dino-5scale_transnext-base_12e

The authors' settings. Published: box AP 57.1.
"""

_base_ = "./dino-5scale_transnext-tiny_12e.py"

model = dict(backbone=dict(name="va_transnext_base", drop_path_rate=0.6))
