# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning of DiNAT's large models: 30 epochs at a rate that falls linearly, without mixed images."""

_base_ = "../_base_/finetune.py"

model = dict(mixup=None)
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=5e-05, weight_decay=0.0001))
auto_scale_lr = dict(base_batch_size=512)
param_scheduler = dict(schedule="poly", decay_rate=1.0, min_factor=0.0, warmup_epochs=0)
