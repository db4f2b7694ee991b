# SPDX-License-Identifier: Apache-2.0
"""The recipe of Semantic FPNs on DAT++ and Agent-PVT: AdamW, 40,000 steps."""

train_cfg = dict(type="IterBasedTrainLoop", max_iters=40000, val_interval=4000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=2e-4, weight_decay=1e-4))
param_scheduler = [
    dict(type="PolyLR", eta_min=0.0, power=0.9, begin=0, end=40000, by_epoch=False),
]
