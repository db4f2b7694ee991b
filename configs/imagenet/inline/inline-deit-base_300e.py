# SPDX-License-Identifier: Apache-2.0
"""va_inline_deit_base trained for 300 epochs on ImageNet-1K, 448x448.

    visionattn train imagenet/inline/inline-deit-base_300e --data DIR

Published: top-1 82.3.
"""

_base_ = "./_swin.py"

model = dict(name="va_inline_deit_base")
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=dict(size=448)))
val_dataloader = dict(dataset=dict(pipeline=dict(size=448, crop_mode="squash")))
test_dataloader = val_dataloader
auto_scale_lr = dict(base_batch_size=512)
