# SPDX-License-Identifier: Apache-2.0
"""va_moh_vit_small_75 trained for 300 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/moh/moh-vit-small-75_300e --data DIR

Published: top-1 84.6.
"""

_base_ = "./_moh.py"

model = dict(name="va_moh_vit_small_75")
