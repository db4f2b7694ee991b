# SPDX-License-Identifier: Apache-2.0
"""va_triplet_resnet18_k3 trained for 100 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/triplet/triplet-resnet18-k3_100e --data DIR

Published: top-1 70.33.
"""

_base_ = "../_base_/resnet.py"

model = dict(name="va_triplet_resnet18_k3")
