# SPDX-License-Identifier: Apache-2.0
"""va_bam_resnet101 trained for 90 epochs on ImageNet-1K, 224x224.

visionattn train imagenet/cbam/bam-resnet101_90e --data DIR
"""

_base_ = "../_base_/resnet.py"

model = dict(name="va_bam_resnet101")
val_dataloader = dict(dataset=dict(pipeline=dict(interpolation="bicubic")))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=90)
