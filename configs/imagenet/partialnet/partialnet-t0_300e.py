# SPDX-License-Identifier: Apache-2.0
"""va_partialnet_t0 trained for 300 epochs on ImageNet-1K, 224x224.

visionattn train imagenet/partialnet/partialnet-t0_300e --data DIR
"""

_base_ = "./_partialnet.py"

model = dict(name="va_partialnet_t0", mixup=dict(mixup_alpha=0.05))
train_dataloader = dict(dataset=dict(pipeline=dict(auto_augment=None)))
optim_wrapper = dict(optimizer=dict(weight_decay=0.005))
