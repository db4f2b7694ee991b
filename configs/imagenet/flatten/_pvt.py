# SPDX-License-Identifier: Apache-2.0
"""The recipe of FLatten Transformer (arXiv:2308.00442) in PVT: DeiT's with half its rate, and a cooldown."""

_base_ = "../_base_/deit.py"

train_cfg = dict(max_epochs=310)
optim_wrapper = dict(optimizer=dict(lr=0.0005))
param_scheduler = dict(warmup_factor=0.002, min_factor=0.02, cooldown_epochs=10)
