# SPDX-License-Identifier: Apache-2.0
"""The recipe of ConvNeXt (arXiv:2201.03545): DeiT's with 4,096 images a step and a warm-up of 20 epochs from zero."""

_base_ = "./deit.py"

optim_wrapper = dict(optimizer=dict(lr=4e-3), accumulative_counts=4)
auto_scale_lr = dict(base_batch_size=4096)
param_scheduler = dict(warmup_epochs=20, warmup_factor=0.0, min_factor=2.5e-4)
