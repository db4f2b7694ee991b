# SPDX-License-Identifier: Apache-2.0
"""va_inline_deit_small trained for 300 epochs on ImageNet-1K, 288x288.

    visionattn train imagenet/inline/inline-deit-small_300e --data DIR

Published: top-1 80.2.
"""

_base_ = "./_swin.py"

model = dict(name="va_inline_deit_small")
train_dataloader = dict(dataset=dict(pipeline=dict(size=288)))
val_dataloader = dict(dataset=dict(pipeline=dict(size=288, crop_mode="squash")))
test_dataloader = val_dataloader
