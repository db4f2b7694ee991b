# SPDX-License-Identifier: Apache-2.0
"""va_ga_convnext_base_1024 trained for 300 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/ga/ga-convnext-base-1024_300e --data DIR

No figure is known.
"""

_base_ = "./_ga.py"

model = dict(name="va_ga_convnext_base_1024")
