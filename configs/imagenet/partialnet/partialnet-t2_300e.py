# SPDX-License-Identifier: Apache-2.0
"""va_partialnet_t2 trained for 300 epochs on ImageNet-1K, 224x224.

visionattn train imagenet/partialnet/partialnet-t2_300e --data DIR
"""

_base_ = "./_partialnet.py"

model = dict(name="va_partialnet_t2")
train_dataloader = dict(dataset=dict(pipeline=dict(auto_augment="rand-m5-mstd0.5-inc1")))
optim_wrapper = dict(optimizer=dict(weight_decay=0.02))
