# SPDX-License-Identifier: Apache-2.0
"""The recipe of Gramian attention heads (arXiv:2310.16483): DeiT's with LAMB, classes by themselves, heads apart."""

_base_ = "../_base_/deit.py"

model = dict(binary=True, branch_weight=-0.8)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="TimmOptimizer", opt="lamb", lr=5e-3, eps=1e-8, weight_decay=0.05)
)
param_scheduler = dict(warmup_factor=2e-4)  # from 1e-6
