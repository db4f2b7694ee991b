# SPDX-License-Identifier: Apache-2.0
"""va_boat_swin_tiny trained for 300 epochs on ImageNet-1K, 224x224.

visionattn train imagenet/boat/boat-swin-tiny_300e --data DIR
"""

_base_ = "../_base_/swin.py"

model = dict(name="va_boat_swin_tiny")
