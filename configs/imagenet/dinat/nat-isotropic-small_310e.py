# SPDX-License-Identifier: Apache-2.0
"""va_nat_isotropic_small trained for 310 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/dinat/nat-isotropic-small_310e --data DIR

Published: top-1 80.
"""

_base_ = "./_dinat.py"

model = dict(name="va_nat_isotropic_small")
