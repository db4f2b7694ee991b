# SPDX-License-Identifier: Apache-2.0
"""The recipe of BOAT-CSWin (arXiv:2201.13027), CSWin's: DeiT's with 2,048 images a step and averaged weights."""

_base_ = "../_base_/deit.py"

train_dataloader = dict(batch_size=256)
val_dataloader = dict(dataset=dict(pipeline=dict(crop_pct=0.9)))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=2e-3))
auto_scale_lr = dict(base_batch_size=2048)
param_scheduler = dict(warmup_epochs=20, warmup_factor=5e-4, min_factor=5e-3)
default_hooks = dict(ema=dict(type="EMAHook", momentum=1.6e-4))
