# SPDX-License-Identifier: Apache-2.0
"""va_swinv2_large_window12to16 fine-tuned for 30 epochs on ImageNet-1K, 256x256.

    visionattn train imagenet/swinv2/swinv2-large-window12to16_ft-22k-30e --data DIR

It starts from the weights of swinv2-large-window12_22k-90e; model.kwargs.pretrained_cfg_overlay.file names another
file. Published: top-1 86.9.
"""

_base_ = "../_base_/finetune.py"

model = dict(
    name="va_swinv2_large_window12to16",
    kwargs=dict(
        pretrained_cfg_overlay=dict(file="work_dirs/swinv2-large-window12_22k-90e/best.pth", num_classes=21841)
    ),
)
train_dataloader = dict(dataset=dict(pipeline=dict(size=256)))
val_dataloader = dict(dataset=dict(pipeline=dict(size=256)))
test_dataloader = val_dataloader
