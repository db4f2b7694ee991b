# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning of HorNet: 30 epochs with layer-wise rates, without mixed images."""

_base_ = "../_base_/finetune.py"

model = dict(mixup=None)
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(
    optimizer=dict(lr=5e-05, weight_decay=1e-08), clip_grad=dict(max_norm=1.0), paramwise_cfg=dict(layer_decay=0.7)
)
auto_scale_lr = dict(base_batch_size=512)
param_scheduler = dict(min_factor=0.02)
default_hooks = dict(ema=dict(type="EMAHook", momentum=0.0001))
