# SPDX-License-Identifier: Apache-2.0
"""Pre-training on ImageNet-22K, 21,841 classes, as Swin's authors do it: 90 epochs, 4,096 images a step."""

_base_ = "./swin.py"

model = dict(num_classes=21841)
train_cfg = dict(max_epochs=90)
optim_wrapper = dict(optimizer=dict(lr=1e-3), accumulative_counts=4)
auto_scale_lr = dict(base_batch_size=4096)
param_scheduler = dict(warmup_epochs=5)
