# SPDX-License-Identifier: Apache-2.0
"""va_datp_tiny trained for 300 epochs on ImageNet-1K, 224x224.

visionattn train imagenet/datpp/datp-tiny_300e --data DIR
"""

_base_ = "../_base_/swin.py"

model = dict(name="va_datp_tiny")
val_dataloader = dict(dataset=dict(pipeline=dict(crop_mode="squash")))
test_dataloader = val_dataloader
