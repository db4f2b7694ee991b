# SPDX-License-Identifier: Apache-2.0
"""Swin's recipe: AdamW, 160,000 steps, no decay of norms and tables; batch 16."""

# Norms and tables of positions, by parts of their names.
spared = ("norm", "rpb", "pos_embed", "position.table", "attn.positions")

train_cfg = dict(type="IterBasedTrainLoop", max_iters=160000, val_interval=16000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(custom_keys={name: dict(decay_mult=0.0) for name in spared}),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, begin=1500, end=160000, by_epoch=False),
]
