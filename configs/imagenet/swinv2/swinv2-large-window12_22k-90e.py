# SPDX-License-Identifier: Apache-2.0
"""va_swinv2_large_window12 pre-trained for 90 epochs on ImageNet-22K, 192x192.

visionattn train imagenet/swinv2/swinv2-large-window12_22k-90e --data DIR
"""

_base_ = "./_22k.py"

model = dict(name="va_swinv2_large_window12")
train_dataloader = dict(dataset=dict(pipeline=dict(size=192)))
val_dataloader = dict(dataset=dict(pipeline=dict(size=192)))
test_dataloader = val_dataloader
