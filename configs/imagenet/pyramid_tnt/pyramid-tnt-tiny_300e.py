# SPDX-License-Identifier: Apache-2.0
"""va_pyramid_tnt_tiny trained for 300 epochs on ImageNet-1K, 192x192.

    visionattn train imagenet/pyramid_tnt/pyramid-tnt-tiny_300e --data DIR

Published: top-1 75.2.
"""

_base_ = "./_pyramid_tnt.py"

model = dict(name="va_pyramid_tnt_tiny")
train_dataloader = dict(dataset=dict(pipeline=dict(size=192)))
val_dataloader = dict(dataset=dict(pipeline=dict(size=192)))
test_dataloader = val_dataloader
