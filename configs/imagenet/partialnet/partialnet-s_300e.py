# SPDX-License-Identifier: Apache-2.0
"""va_partialnet_s trained for 300 epochs on ImageNet-1K, 224x224.

visionattn train imagenet/partialnet/partialnet-s_300e --data DIR
"""

_base_ = "./_partialnet.py"

model = dict(name="va_partialnet_s", mixup=dict(mixup_alpha=0.3))
train_dataloader = dict(dataset=dict(pipeline=dict(auto_augment="rand-m7-mstd0.5-inc1")))
optim_wrapper = dict(optimizer=dict(weight_decay=0.03))
