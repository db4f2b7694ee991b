# SPDX-License-Identifier: Apache-2.0
"""va_litv2_medium trained for 300 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/litv2/litv2-medium_300e --data DIR

Published: top-1 83.3.
"""

_base_ = "./_litv2.py"

model = dict(name="va_litv2_medium")
