# SPDX-License-Identifier: Apache-2.0
"""va_dat_base_384 fine-tuned for 30 epochs on ImageNet-1K, 384x384.

    visionattn train imagenet/dat/dat-base-384_ft-30e --data DIR

It starts from the weights of dat-base_300e; model.kwargs.pretrained_cfg_overlay.file names another file. Published:
top-1 84.8.
"""

_base_ = "../_base_/finetune.py"

model = dict(name="va_dat_base_384", kwargs=dict(pretrained_cfg_overlay=dict(file="work_dirs/dat-base_300e/best.pth")))
train_dataloader = dict(batch_size=24, dataset=dict(pipeline=dict(size=384)))
val_dataloader = dict(dataset=dict(pipeline=dict(size=384, crop_pct=0.876712, crop_mode="squash")))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=4e-06))
param_scheduler = dict(warmup_epochs=0, min_factor=0.05)
