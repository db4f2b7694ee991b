# SPDX-License-Identifier: Apache-2.0
"""va_cbam_resnet50 trained for 100 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/cbam/cbam-resnet50_100e --data DIR

Published: top-1 77.622.
"""

_base_ = "../_base_/resnet.py"

model = dict(name="va_cbam_resnet50")
