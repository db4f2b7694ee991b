# SPDX-License-Identifier: Apache-2.0
"""va_triplet_resnet50 trained for 100 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/triplet/triplet-resnet50_100e --data DIR

Published: top-1 77.48.
"""

_base_ = "../_base_/resnet.py"

model = dict(name="va_triplet_resnet50")
