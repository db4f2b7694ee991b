# SPDX-License-Identifier: Apache-2.0
"""va_ga_convnext_small_768 trained for 300 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/ga/ga-convnext-small-768_300e --data DIR

No figure is known.
"""

_base_ = "./_ga.py"

model = dict(name="va_ga_convnext_small_768")
