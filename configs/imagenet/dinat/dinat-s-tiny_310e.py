# SPDX-License-Identifier: Apache-2.0
"""va_dinat_s_tiny trained for 310 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/dinat/dinat-s-tiny_310e --data DIR

Published: top-1 81.8.
"""

_base_ = "./_dinat.py"

model = dict(name="va_dinat_s_tiny")
