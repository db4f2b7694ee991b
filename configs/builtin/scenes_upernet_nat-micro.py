# SPDX-License-Identifier: Apache-2.0
"""Train a small UPerNet on a small NAT to label the pixels of digits, brick, grass, gravel and photographs.

    visionattn train builtin/scenes_upernet_nat-micro

The scenes (800 for training, 160 held back) are made in `data_root` on first use: `data/scenes`, or where
VISIONATTN_SCENES says.

665,151 parameters. Eight minutes on two processor cores; mIoU 77.0 on the held-back scenes after the last epoch (ours,
seed 0, November 2026). `make demo-segmentation` asks for 75.
"""

_base_ = ["../_base_/dense_runtime.py"]
default_scope = "mmseg"

epochs = 8
data_root = "{{$VISIONATTN_SCENES:data/scenes}}"
scenes = dict(training=800, validation=160, height=128, width=160, digits=4, seed=0)
size = (128, 160)  # height, width

model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=size,
        seg_pad_val=255,
    ),
    backbone=dict(
        type="TimmBackbone",
        name="va_nat_tiny",
        embed_dim=32,
        depths=(1, 2, 2),
        num_heads=(2, 4, 8),
        kernel_size=5,
        drop_path_rate=0.1,
    ),
    decode_head=dict(
        type="UPerHead",
        in_channels="auto",
        in_index=(0, 1, 2),
        pool_scales=(1, 2, 3, 6),
        channels=32,
        dropout_ratio=0.1,
        num_classes=5,
        norm_cfg=dict(type="BN"),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0, avg_non_ignore=True),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion", hue_delta=40),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=size[::-1], keep_ratio=True),  # for photos of your own
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="ScenesSegmentation", data_root=data_root, split="training", scenes=scenes, pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="ScenesSegmentation", data_root=data_root, split="validation", scenes=scenes, pipeline=test_pipeline
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator

train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=2)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=1, end=epochs, convert_to_iter_based=True),
]
