# SPDX-License-Identifier: Apache-2.0
"""va_vitrpb_small trained for 310 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/dinat/vitrpb-small_310e --data DIR

Published: top-1 81.2.
"""

_base_ = "./_dinat.py"

model = dict(name="va_vitrpb_small")
