# SPDX-License-Identifier: Apache-2.0
"""va_transnext_small_384 fine-tuned for 5 epochs on ImageNet-1K, 384x384.

    visionattn train imagenet/transnext/transnext-small-384_ft-5e --data DIR

It starts from the weights of transnext-small_300e; model.kwargs.pretrained_cfg_overlay.file names another file.
Published: top-1 86.
"""

_base_ = "./_transnext.py"

model = dict(
    name="va_transnext_small_384",
    pretrained=True,
    mixup=dict(cutmix_alpha=0.0),
    kwargs=dict(pretrained_cfg_overlay=dict(file="work_dirs/transnext-small_300e/best.pth")),
)
train_dataloader = dict(dataset=dict(pipeline=dict(size=384)))
val_dataloader = dict(dataset=dict(pipeline=dict(size=384)))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=5)
optim_wrapper = dict(optimizer=dict(lr=1e-05))
param_scheduler = dict(schedule="constant", warmup_epochs=0)
