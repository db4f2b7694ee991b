# SPDX-License-Identifier: Apache-2.0
"""va_pyramid_tnt_medium trained for 300 epochs on ImageNet-1K, 256x256.

    visionattn train imagenet/pyramid_tnt/pyramid-tnt-medium_300e --data DIR

Published: top-1 83.5.
"""

_base_ = "./_pyramid_tnt.py"

model = dict(name="va_pyramid_tnt_medium")
