# SPDX-License-Identifier: Apache-2.0
"""The recipe of PartialNet (arXiv:2502.01303): ConvNeXt's without erasing.

The authors train with images of 192 pixels until epoch 280; here they have 224 throughout.
"""

_base_ = "../_base_/convnext.py"

model = dict(mixup=dict(mixup_alpha=0.1))
train_dataloader = dict(dataset=dict(pipeline=dict(erase_prob=0.0)))
val_dataloader = dict(dataset=dict(pipeline=dict(crop_pct=0.9)))
test_dataloader = val_dataloader
param_scheduler = dict(warmup_factor=2.5e-4, min_factor=2.5e-3)
