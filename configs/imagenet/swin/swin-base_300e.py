# SPDX-License-Identifier: Apache-2.0
"""va_swin_base trained for 300 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/swin/swin-base_300e --data DIR

Published: top-1 83.5.
"""

_base_ = "../_base_/swin.py"

model = dict(name="va_swin_base")
