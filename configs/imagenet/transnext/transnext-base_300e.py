# SPDX-License-Identifier: Apache-2.0
"""va_transnext_base trained for 300 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/transnext/transnext-base_300e --data DIR

Published: top-1 84.8.
"""

_base_ = "./_transnext.py"

model = dict(name="va_transnext_base")
