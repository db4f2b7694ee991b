# SPDX-License-Identifier: Apache-2.0
"""va_hornet_base_gf_384 fine-tuned for 30 epochs on ImageNet-1K, 384x384.

    visionattn train imagenet/hornet/hornet-base-gf-384_ft-30e --data DIR

It starts from the weights of hornet-base-gf_300e; model.kwargs.pretrained_cfg_overlay.file names another file.
"""

_base_ = "./_384.py"

model = dict(
    name="va_hornet_base_gf_384",
    kwargs=dict(pretrained_cfg_overlay=dict(file="work_dirs/hornet-base-gf_300e/best.pth")),
)
train_dataloader = dict(dataset=dict(pipeline=dict(size=384)))
val_dataloader = dict(dataset=dict(pipeline=dict(size=384, crop_pct=1.0)))
test_dataloader = val_dataloader
