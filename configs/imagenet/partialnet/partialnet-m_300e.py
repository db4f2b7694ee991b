# SPDX-License-Identifier: Apache-2.0
"""va_partialnet_m trained for 300 epochs on ImageNet-1K, 224x224.

visionattn train imagenet/partialnet/partialnet-m_300e --data DIR
"""

_base_ = "./_partialnet.py"

model = dict(name="va_partialnet_m", mixup=dict(mixup_alpha=0.5))
train_dataloader = dict(dataset=dict(pipeline=dict(auto_augment="rand-m7-mstd0.5-inc1")))
optim_wrapper = dict(optimizer=dict(lr=0.002), clip_grad=dict(max_norm=1.0))
param_scheduler = dict(warmup_factor=5e-4, min_factor=5e-3)
