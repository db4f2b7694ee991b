# SPDX-License-Identifier: Apache-2.0
"""va_swin_large_384 fine-tuned for 30 epochs on ImageNet-1K, 384x384.

    visionattn train imagenet/swin/swin-large-384_ft-22k-30e --data DIR

It starts from the weights of swin-large_22k-90e; model.kwargs.pretrained_cfg_overlay.file names another file.
Published: top-1 87.3.
"""

_base_ = "../_base_/finetune.py"

model = dict(
    name="va_swin_large_384",
    kwargs=dict(
        drop_path_rate=0.2, pretrained_cfg_overlay=dict(file="work_dirs/swin-large_22k-90e/best.pth", num_classes=21841)
    ),
)
train_dataloader = dict(dataset=dict(pipeline=dict(size=384)))
val_dataloader = dict(dataset=dict(pipeline=dict(size=384, crop_pct=1.0)))
test_dataloader = val_dataloader
