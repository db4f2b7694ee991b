# SPDX-License-Identifier: Apache-2.0
"""va_swinv2_small_window16 trained for 300 epochs on ImageNet-1K, 256x256.

    visionattn train imagenet/swinv2/swinv2-small-window16_300e --data DIR

Published: top-1 84.1.
"""

_base_ = "../_base_/swin.py"

model = dict(name="va_swinv2_small_window16")
train_dataloader = dict(dataset=dict(pipeline=dict(size=256)))
val_dataloader = dict(dataset=dict(pipeline=dict(size=256)))
test_dataloader = val_dataloader
