# SPDX-License-Identifier: Apache-2.0
"""va_triplet_resnet18 trained for 100 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/triplet/triplet-resnet18_100e --data DIR

Published: top-1 71.09.
"""

_base_ = "../_base_/resnet.py"

model = dict(name="va_triplet_resnet18")
