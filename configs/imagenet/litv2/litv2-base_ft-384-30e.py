# SPDX-License-Identifier: Apache-2.0
"""va_litv2_base fine-tuned for 30 epochs on ImageNet-1K, 384x384.

    visionattn train imagenet/litv2/litv2-base_ft-384-30e --data DIR

It starts from the weights of litv2-base_300e; model.kwargs.pretrained_cfg_overlay.file names another file. Published:
top-1 84.7.
"""

_base_ = "../_base_/finetune.py"

model = dict(name="va_litv2_base", kwargs=dict(pretrained_cfg_overlay=dict(file="work_dirs/litv2-base_300e/best.pth")))
train_dataloader = dict(dataset=dict(pipeline=dict(size=384)))
val_dataloader = dict(dataset=dict(pipeline=dict(size=384, crop_pct=1.0)))
test_dataloader = val_dataloader
optim_wrapper = dict(paramwise_cfg=dict(lr_mult={"down.offset": 0.01}))
