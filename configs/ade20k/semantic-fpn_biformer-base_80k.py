# SPDX-License-Identifier: Apache-2.0
"""Semantic FPN on va_biformer_base, ADE20K, 80k.

    visionattn train ade20k/semantic-fpn_biformer-base_80k

The authors' settings. Published: mIoU 49.9.
"""

_base_ = [
    "../_base_/models/semantic-fpn.py",
    "mmseg::_base_/datasets/ade20k.py",
    "../_base_/schedules/ade20k_80k_fpn.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_biformer_base", drop_path_rate=0.3, num_regions=8))
optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=1000),
    dict(type="CosineAnnealingLR", eta_min=2e-12, by_epoch=False, begin=0, end=80000),
]
# Sides that are multiples of 32, as the authors' AlignResize makes them.
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(2048, 512), keep_ratio=True),
    dict(type="ResizeToMultiple", size_divisor=32),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
