# SPDX-License-Identifier: Apache-2.0
"""va_hornet_base_7x7 trained for 300 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/hornet/hornet-base-7x7_300e --data DIR

Published: top-1 84.2.
"""

_base_ = "./_hornet.py"

model = dict(name="va_hornet_base_7x7")
optim_wrapper = dict(clip_grad=dict(max_norm=5.0))
