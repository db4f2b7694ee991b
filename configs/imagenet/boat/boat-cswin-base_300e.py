# SPDX-License-Identifier: Apache-2.0
"""va_boat_cswin_base trained for 300 epochs on ImageNet-1K, 224x224.

visionattn train imagenet/boat/boat-cswin-base_300e --data DIR
"""

_base_ = "./_cswin.py"

model = dict(name="va_boat_cswin_base")
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.1))
auto_scale_lr = dict(base_batch_size=1024)
param_scheduler = dict(warmup_factor=1e-3, min_factor=0.01)
default_hooks = dict(ema=dict(type="EMAHook", momentum=8e-5))
