# SPDX-License-Identifier: Apache-2.0
"""va_bam_resnet50 trained for 90 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/cbam/bam-resnet50_90e --data DIR

Published: top-1 76.86.
"""

_base_ = "../_base_/resnet.py"

model = dict(name="va_bam_resnet50")
train_cfg = dict(max_epochs=90)
