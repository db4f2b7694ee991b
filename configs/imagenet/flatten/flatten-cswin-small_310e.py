# SPDX-License-Identifier: Apache-2.0
"""va_flatten_cswin_small trained for 310 epochs on ImageNet-1K, 224x224.

visionattn train imagenet/flatten/flatten-cswin-small_310e --data DIR
"""

_base_ = "./_cswin.py"

model = dict(name="va_flatten_cswin_small")
val_dataloader = dict(dataset=dict(pipeline=dict(crop_mode="squash")))
test_dataloader = val_dataloader
