# SPDX-License-Identifier: Apache-2.0
"""va_inline_pvt_large trained for 310 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/inline/inline-pvt-large_310e --data DIR

Published: top-1 83.6.
"""

_base_ = "./_pvt.py"

model = dict(name="va_inline_pvt_large")
val_dataloader = dict(dataset=dict(pipeline=dict(crop_mode="squash")))
test_dataloader = val_dataloader
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
