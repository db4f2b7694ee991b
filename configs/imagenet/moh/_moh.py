# SPDX-License-Identifier: Apache-2.0
"""The recipe of MoH-ViT (arXiv:2410.11842): TransNeXt's, with the loss that spreads the choice of heads."""

_base_ = "../_base_/deit.py"

train_dataloader = dict(sampler=dict(_delete_=True, type="RepeatedAugmentation"))
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
