# SPDX-License-Identifier: Apache-2.0
"""va_parcnetv2_base trained for 310 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/parcnetv2/parcnetv2-base_310e --data DIR

Published: top-1 84.6.
"""

_base_ = "./_parcnetv2.py"

model = dict(name="va_parcnetv2_base")
