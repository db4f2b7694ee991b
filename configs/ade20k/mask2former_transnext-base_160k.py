# SPDX-License-Identifier: Apache-2.0
"""Mask2Former on va_transnext_base, ADE20K, 160k.

    visionattn train ade20k/mask2former_transnext-base_160k

The authors' settings. Published: mIoU 54.7.
"""

_base_ = "./mask2former_transnext-tiny_160k.py"

model = dict(backbone=dict(name="va_transnext_base", drop_path_rate=0.6))
