# SPDX-License-Identifier: Apache-2.0
"""va_swin_small fine-tuned for 30 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/swin/swin-small_ft-22k-30e --data DIR

It starts from the weights of swin-small_22k-90e; model.kwargs.pretrained_cfg_overlay.file names another file.
Published: top-1 83.2.
"""

_base_ = "../_base_/finetune.py"

model = dict(
    name="va_swin_small",
    kwargs=dict(
        drop_path_rate=0.2, pretrained_cfg_overlay=dict(file="work_dirs/swin-small_22k-90e/best.pth", num_classes=21841)
    ),
)
