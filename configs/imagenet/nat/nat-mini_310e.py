# SPDX-License-Identifier: Apache-2.0
"""va_nat_mini trained for 310 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/nat/nat-mini_310e --data DIR

Published: top-1 81.8.
"""

_base_ = "./_nat.py"

model = dict(name="va_nat_mini")
