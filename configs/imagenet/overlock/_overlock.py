# SPDX-License-Identifier: Apache-2.0
"""The recipe of OverLoCK (arXiv:2502.20087): DeiT's with 2,048 images a step, a loss of the overview's own logits,
averaged weights, and gradients clipped."""

_base_ = "../_base_/deit.py"

model = dict(aux_weight=0.4)
train_dataloader = dict(batch_size=256)
optim_wrapper = dict(optimizer=dict(lr=2e-3), clip_grad=dict(max_norm=5.0))
auto_scale_lr = dict(base_batch_size=2048)
param_scheduler = dict(warmup_factor=5e-4, min_factor=5e-3)
default_hooks = dict(ema=dict(type="EMAHook", momentum=0.0001))
