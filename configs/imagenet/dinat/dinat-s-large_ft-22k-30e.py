# SPDX-License-Identifier: Apache-2.0
"""va_dinat_s_large fine-tuned for 30 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/dinat/dinat-s-large_ft-22k-30e --data DIR

The authors' pre-training on ImageNet-22K is not published in detail; give their weights as
model.kwargs.pretrained_cfg_overlay.file. Published: top-1 86.5.
"""

_base_ = "./_large.py"

model = dict(
    name="va_dinat_s_large",
    kwargs=dict(pretrained_cfg_overlay=dict(file="dinat_s_large_in22k_224.pth", num_classes=21841)),
)
