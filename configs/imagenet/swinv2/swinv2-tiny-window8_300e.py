# SPDX-License-Identifier: Apache-2.0
"""va_swinv2_tiny_window8 trained for 300 epochs on ImageNet-1K, 256x256.

    visionattn train imagenet/swinv2/swinv2-tiny-window8_300e --data DIR

Published: top-1 81.8.
"""

_base_ = "../_base_/swin.py"

model = dict(name="va_swinv2_tiny_window8")
train_dataloader = dict(dataset=dict(pipeline=dict(size=256)))
val_dataloader = dict(dataset=dict(pipeline=dict(size=256)))
test_dataloader = val_dataloader
