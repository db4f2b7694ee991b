# SPDX-License-Identifier: Apache-2.0
"""The recipe of BiFormer (arXiv:2303.08810): DeiT's with repeated augmentation and ten epochs at the lowest rate."""

_base_ = "../_base_/deit.py"

train_dataloader = dict(sampler=dict(_delete_=True, type="RepeatedAugmentation"))
train_cfg = dict(max_epochs=310)
param_scheduler = dict(cooldown_epochs=10)
