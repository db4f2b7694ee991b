# SPDX-License-Identifier: Apache-2.0
"""va_transnext_micro_aaaa trained for 300 epochs on ImageNet-1K, 256x256.

    visionattn train imagenet/transnext/transnext-micro-aaaa_300e --data DIR

Published: top-1 82.6.
"""

_base_ = "./_transnext.py"

model = dict(name="va_transnext_micro_aaaa")
train_dataloader = dict(dataset=dict(pipeline=dict(size=256)))
val_dataloader = dict(dataset=dict(pipeline=dict(size=256)))
test_dataloader = val_dataloader
