# SPDX-License-Identifier: Apache-2.0
"""va_biformer_small trained for 310 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/biformer/biformer-small_310e --data DIR

Published: top-1 83.8.
"""

_base_ = "./_biformer.py"

model = dict(name="va_biformer_small")
