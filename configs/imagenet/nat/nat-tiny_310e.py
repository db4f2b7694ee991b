# SPDX-License-Identifier: Apache-2.0
"""va_nat_tiny trained for 310 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/nat/nat-tiny_310e --data DIR

Published: top-1 83.2.
"""

_base_ = "./_nat.py"

model = dict(name="va_nat_tiny")
