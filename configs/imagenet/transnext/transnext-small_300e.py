# SPDX-License-Identifier: Apache-2.0
"""va_transnext_small trained for 300 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/transnext/transnext-small_300e --data DIR

Published: top-1 84.7.
"""

_base_ = "./_transnext.py"

model = dict(name="va_transnext_small")
