# SPDX-License-Identifier: Apache-2.0
"""va_flatten_pvtv2_b2 trained for 310 epochs on ImageNet-1K, 224x224.

visionattn train imagenet/flatten/flatten-pvtv2-b2_310e --data DIR
"""

_base_ = "./_pvt.py"

model = dict(name="va_flatten_pvtv2_b2")
val_dataloader = dict(dataset=dict(pipeline=dict(crop_mode="squash")))
test_dataloader = val_dataloader
