# SPDX-License-Identifier: Apache-2.0
"""The recipe of PyramidTNT (arXiv:2201.00978): DeiT's with repeats, averaged weights, more warm-up."""

_base_ = "../_base_/deit.py"

train_dataloader = dict(
    sampler=dict(_delete_=True, type="RepeatedAugmentation"),
    dataset=dict(pipeline=dict(size=256, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))),
)
val_dataloader = dict(dataset=dict(pipeline=dict(size=256, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))))
test_dataloader = val_dataloader
param_scheduler = dict(warmup_epochs=20)
default_hooks = dict(ema=dict(type="EMAHook", momentum=4e-05))
