# SPDX-License-Identifier: Apache-2.0
"""va_ga_convnext_base_976 trained for 300 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/ga/ga-convnext-base-976_300e --data DIR

Published for the network that is nearest: top-1 84.3.
"""

_base_ = "./_ga.py"

model = dict(name="va_ga_convnext_base_976")
