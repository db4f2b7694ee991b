# SPDX-License-Identifier: Apache-2.0
"""va_swin_tiny_c24 trained for 300 epochs on ImageNet-1K, 256x256.

    visionattn train imagenet/swin/swin-tiny-c24_300e --data DIR

Published: top-1 81.6.
"""

_base_ = "../_base_/swin.py"

model = dict(name="va_swin_tiny_c24")
train_dataloader = dict(dataset=dict(pipeline=dict(size=256)))
val_dataloader = dict(dataset=dict(pipeline=dict(size=256)))
test_dataloader = val_dataloader
