# SPDX-License-Identifier: Apache-2.0
"""va_swin_base_384 fine-tuned for 30 epochs on ImageNet-1K, 384x384.

    visionattn train imagenet/swin/swin-base-384_ft-30e --data DIR

It starts from the weights of swin-base_300e; model.kwargs.pretrained_cfg_overlay.file names another file. Published:
top-1 84.5.
"""

_base_ = "../_base_/finetune.py"

model = dict(
    name="va_swin_base_384", kwargs=dict(pretrained_cfg_overlay=dict(file="work_dirs/swin-base_300e/best.pth"))
)
train_dataloader = dict(dataset=dict(pipeline=dict(size=384)))
val_dataloader = dict(dataset=dict(pipeline=dict(size=384, crop_pct=1.0)))
test_dataloader = val_dataloader
