# SPDX-License-Identifier: Apache-2.0
"""Swin's recipe, 36 epochs: AdamW, no decay of norms and tables; batch 16."""

# Norms and tables of positions, by parts of their names.
spared = ("norm", "rpb", "pos_embed", "position.table", "attn.positions")

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=36, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(custom_keys={name: dict(decay_mult=0.0) for name in spared}),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", begin=0, end=36, by_epoch=True, milestones=[27, 33], gamma=0.1),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)
