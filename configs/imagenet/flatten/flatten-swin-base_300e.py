# SPDX-License-Identifier: Apache-2.0
"""va_flatten_swin_base trained for 300 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/flatten/flatten-swin-base_300e --data DIR

Published: top-1 83.8.
"""

_base_ = "./_swin.py"

model = dict(name="va_flatten_swin_base")
val_dataloader = dict(dataset=dict(pipeline=dict(crop_mode="squash")))
test_dataloader = val_dataloader
