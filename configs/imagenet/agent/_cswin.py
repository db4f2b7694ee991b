# SPDX-License-Identifier: Apache-2.0
"""The recipe of Agent Attention (arXiv:2312.08874) in CSwin: as in PVT, with averaged weights."""

_base_ = "../_base_/deit.py"

train_cfg = dict(max_epochs=310)
optim_wrapper = dict(optimizer=dict(lr=0.0005))
param_scheduler = dict(warmup_epochs=20, warmup_factor=0.002, min_factor=0.02, cooldown_epochs=10)
default_hooks = dict(ema=dict(type="EMAHook", momentum=0.00016))
