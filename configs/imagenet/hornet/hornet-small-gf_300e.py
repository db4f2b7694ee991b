# SPDX-License-Identifier: Apache-2.0
"""va_hornet_small_gf trained for 300 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/hornet/hornet-small-gf_300e --data DIR

Published: top-1 84.
"""

_base_ = "./_hornet.py"

model = dict(name="va_hornet_small_gf")
train_dataloader = dict(dataset=dict(pipeline=dict(auto_augment="rand-m12-mstd0.5-inc1")))
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
