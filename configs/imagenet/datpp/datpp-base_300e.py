# SPDX-License-Identifier: Apache-2.0
"""va_datpp_base trained for 300 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/datpp/datpp-base_300e --data DIR

Published: top-1 84.9.
"""

_base_ = "../_base_/swin.py"

model = dict(name="va_datpp_base")
val_dataloader = dict(dataset=dict(pipeline=dict(crop_mode="squash")))
test_dataloader = val_dataloader
