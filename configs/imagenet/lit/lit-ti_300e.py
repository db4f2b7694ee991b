# SPDX-License-Identifier: Apache-2.0
"""va_lit_ti trained for 300 epochs on ImageNet-1K, 224x224.

visionattn train imagenet/lit/lit-ti_300e --data DIR
"""

_base_ = "../_base_/deit.py"

model = dict(name="va_lit_ti")
train_dataloader = dict(sampler=dict(_delete_=True, type="RepeatedAugmentation"))
