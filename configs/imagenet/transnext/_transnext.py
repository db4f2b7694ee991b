# SPDX-License-Identifier: Apache-2.0
"""The recipe of TransNeXt (arXiv:2311.17132): DeiT's with repeated augmentation and clipped gradients."""

_base_ = "../_base_/deit.py"

train_dataloader = dict(sampler=dict(_delete_=True, type="RepeatedAugmentation"))
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
