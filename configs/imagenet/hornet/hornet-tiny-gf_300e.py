# SPDX-License-Identifier: Apache-2.0
"""va_hornet_tiny_gf trained for 300 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/hornet/hornet-tiny-gf_300e --data DIR

Published: top-1 83.
"""

_base_ = "./_hornet.py"

model = dict(name="va_hornet_tiny_gf")
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
