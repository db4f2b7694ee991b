# SPDX-License-Identifier: Apache-2.0
"""va_lit_base trained for 300 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/lit/lit-base_300e --data DIR

Published: top-1 83.4.
"""

_base_ = "../_base_/swin.py"

model = dict(name="va_lit_base")
