# SPDX-License-Identifier: Apache-2.0
"""va_flatten_swin_base_384 fine-tuned for 30 epochs on ImageNet-1K, 384x384.

    visionattn train imagenet/flatten/flatten-swin-base-384_ft-30e --data DIR

It starts from the weights of flatten-swin-base_300e; model.kwargs.pretrained_cfg_overlay.file names another file.
Published: top-1 85.
"""

_base_ = "../_base_/finetune.py"

model = dict(
    name="va_flatten_swin_base_384",
    kwargs=dict(pretrained_cfg_overlay=dict(file="work_dirs/flatten-swin-base_300e/best.pth")),
)
train_dataloader = dict(batch_size=32, dataset=dict(pipeline=dict(size=384)))
val_dataloader = dict(dataset=dict(pipeline=dict(size=384, crop_pct=1.0, crop_mode="squash")))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=2e-05))
auto_scale_lr = dict(base_batch_size=256)
