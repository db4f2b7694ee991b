# SPDX-License-Identifier: Apache-2.0
"""Object context and attention between scales on va_psa_s_hrnetv2_w48, Cityscapes, 175 epochs.

    visionattn train cityscapes/hierarchical-ocr_psa-s-hrnetv2-w48_175e

The settings of the other network. Published: mIoU 86.72 at several scales. `model.checkpoint=FILE` takes the authors'
file.
"""

_base_ = "./hierarchical-ocr_psa-hrnetv2-w48_175e.py"

model = dict(backbone=dict(name="va_psa_s_hrnetv2_w48"))
