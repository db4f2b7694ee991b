# SPDX-License-Identifier: Apache-2.0
"""Train a small ATSS, a one-stage detector, on a small NAT to find digits in photographs (800 scenes, 160 held back).

    visionattn train builtin/scenes_atss_nat-micro

It reaches box AP50 0.86 (AP 0.61) on the held-back scenes after the last epoch (ours, seed 0, November 2026).
`make demo-one-stage` asks for 0.80.

The scenes are made in `data_root` on first use: `data/scenes`, or where VISIONATTN_SCENES says.
"""

_base_ = ["../_base_/dense_runtime.py"]
default_scope = "mmdet"

epochs = 24
data_root = "{{$VISIONATTN_SCENES:data/scenes}}"
scenes = dict(training=800, validation=160, height=128, width=160, digits=4, seed=0)
num_classes = 10

channels = 64
strides = [8, 16]
norm_cfg = dict(type="GN", num_groups=8)

model = dict(
    type="ATSS",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type="TimmBackbone",
        name="va_nat_tiny",
        out_indices=(1, 2),
        embed_dim=32,
        depths=(1, 2, 2),
        num_heads=(2, 4, 8),
        kernel_size=3,
        drop_path_rate=0.1,
    ),
    neck=dict(type="FPN", in_channels="auto", out_channels=channels, num_outs=len(strides), norm_cfg=norm_cfg),
    bbox_head=dict(
        type="ATSSHead",
        num_classes=num_classes,
        in_channels=channels,
        feat_channels=channels,
        stacked_convs=2,
        norm_cfg=norm_cfg,
        anchor_generator=dict(
            type="AnchorGenerator", ratios=[1.0], octave_base_scale=4, scales_per_octave=1, strides=strides
        ),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_stds=[0.1, 0.1, 0.2, 0.2]),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
        loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
    ),
    train_cfg=dict(assigner=dict(type="ATSSAssigner", topk=9), allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(
        nms_pre=200, min_bbox_size=0, score_thr=0.05, nms=dict(type="nms", iou_threshold=0.6), max_per_img=20
    ),
)

# No flips: a mirrored 2 is no digit.
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    # One stage sees a digit at the size that it has, so it must have seen all sizes.
    dict(
        type="RandomAffine",
        max_rotate_degree=5.0,
        max_translate_ratio=0.1,
        scaling_ratio_range=(0.7, 1.4),
        max_shear_degree=0.0,
    ),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(160, 128), keep_ratio=True),  # for photos of your own
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="ScenesDetection", data_root=data_root, split="training", scenes=scenes, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="ScenesDetection",
        data_root=data_root,
        split="validation",
        scenes=scenes,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="CocoMetric",
    ann_file=f"{data_root}/annotations/instances_validation.json",
    metric="bbox",
)
test_evaluator = val_evaluator

train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=4)
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
