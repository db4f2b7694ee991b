# SPDX-License-Identifier: Apache-2.0
"""va_partialnet_t1 trained for 300 epochs on ImageNet-1K, 224x224.

visionattn train imagenet/partialnet/partialnet-t1_300e --data DIR
"""

_base_ = "./_partialnet.py"

model = dict(name="va_partialnet_t1")
train_dataloader = dict(dataset=dict(pipeline=dict(auto_augment="rand-m3-mstd0.5-inc1")))
optim_wrapper = dict(optimizer=dict(weight_decay=0.01))
