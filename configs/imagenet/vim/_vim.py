# SPDX-License-Identifier: Apache-2.0
"""The recipe of Vim (arXiv:2401.09417): DeiT's with repeated augmentation and averaged weights."""

_base_ = "../_base_/deit.py"

train_dataloader = dict(
    sampler=dict(_delete_=True, type="RepeatedAugmentation"), dataset=dict(pipeline=dict(color_jitter=0.3))
)
default_hooks = dict(ema=dict(type="EMAHook", momentum=4e-05))
