# SPDX-License-Identifier: Apache-2.0
"""va_cbam_resnet18 trained for 100 epochs on ImageNet-1K, 224x224.

visionattn train imagenet/cbam/cbam-resnet18_100e --data DIR
"""

_base_ = "../_base_/resnet.py"

model = dict(name="va_cbam_resnet18")
val_dataloader = dict(dataset=dict(pipeline=dict(interpolation="bicubic")))
test_dataloader = val_dataloader
