# SPDX-License-Identifier: Apache-2.0
"""va_dinat_large_384_11x11 fine-tuned for 30 epochs on ImageNet-1K, 384x384.

    visionattn train imagenet/dinat/dinat-large-384-11x11_ft-22k-30e --data DIR

The authors' pre-training on ImageNet-22K is not published in detail; give their weights as
model.kwargs.pretrained_cfg_overlay.file. Published: top-1 87.5.
"""

_base_ = "./_large.py"

model = dict(
    name="va_dinat_large_384_11x11",
    kwargs=dict(pretrained_cfg_overlay=dict(file="dinat_large_in22k_224_11x11interp.pth", num_classes=21841)),
)
train_dataloader = dict(dataset=dict(pipeline=dict(size=384)))
val_dataloader = dict(dataset=dict(pipeline=dict(size=384, crop_pct=1.0)))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(weight_decay=1e-10))
