# SPDX-License-Identifier: Apache-2.0
"""va_dat_base trained for 300 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/dat/dat-base_300e --data DIR

Published: top-1 84.
"""

_base_ = "../_base_/swin.py"

model = dict(name="va_dat_base")
val_dataloader = dict(dataset=dict(pipeline=dict(crop_mode="squash")))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=0.0008), clip_grad=dict(max_norm=1.0))
param_scheduler = dict(warmup_epochs=50, warmup_factor=0.00125, min_factor=0.0125)
