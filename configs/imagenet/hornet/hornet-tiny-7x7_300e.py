# SPDX-License-Identifier: Apache-2.0
"""va_hornet_tiny_7x7 trained for 300 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/hornet/hornet-tiny-7x7_300e --data DIR

Published: top-1 82.8.
"""

_base_ = "./_hornet.py"

model = dict(name="va_hornet_tiny_7x7")
optim_wrapper = dict(clip_grad=dict(max_norm=100.0))
