# SPDX-License-Identifier: Apache-2.0
"""The recipe of DiNAT (arXiv:2209.15001): Swin's with ten epochs at the lowest rate, and either interpolation."""

_base_ = "../_base_/swin.py"

train_cfg = dict(max_epochs=310)
param_scheduler = dict(min_factor=0.005, cooldown_epochs=10)
train_dataloader = dict(dataset=dict(pipeline=dict(interpolation="random")))
