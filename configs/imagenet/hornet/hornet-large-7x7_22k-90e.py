# SPDX-License-Identifier: Apache-2.0
"""va_hornet_large_7x7 pre-trained for 90 epochs on ImageNet-22K, 224x224.

visionattn train imagenet/hornet/hornet-large-7x7_22k-90e --data DIR
"""

_base_ = "./_hornet.py"

model = dict(name="va_hornet_large_7x7", num_classes=21841)
train_cfg = dict(max_epochs=90)
optim_wrapper = dict(optimizer=dict(weight_decay=0.1), clip_grad=dict(max_norm=5.0))
param_scheduler = dict(warmup_epochs=5)
