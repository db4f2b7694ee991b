# SPDX-License-Identifier: Apache-2.0
"""va_pyramid_tnt_base trained for 300 epochs on ImageNet-1K, 256x256.

    visionattn train imagenet/pyramid_tnt/pyramid-tnt-base_300e --data DIR

Published: top-1 84.1.
"""

_base_ = "./_pyramid_tnt.py"

model = dict(name="va_pyramid_tnt_base")
