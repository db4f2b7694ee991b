# SPDX-License-Identifier: Apache-2.0
"""A config for tests: FCN head on a tiny pyramid, by steps, a second a run; `--data` says where the data are."""

_base_ = ["../../configs/_base_/dense_runtime.py"]
default_scope = "mmseg"
find_unused_parameters = True  # the norm of the first map, which the head leaves alone
classes = ("background", "rectangle", "disc")
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[100.0] * 3,
        std=[60.0] * 3,
        bgr_to_rgb=True,
        size=(48, 64),
        seg_pad_val=255,
    ),
    backbone=dict(
        type="TimmBackbone",
        name="va_nat_tiny",
        embed_dim=16,
        depths=(1, 1),
        num_heads=(1, 2),
        kernel_size=3,
        drop_path_rate=0.2,
    ),
    decode_head=dict(
        type="FCNHead",
        in_channels="auto",
        in_index=1,
        channels=16,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=len(classes),
        norm_cfg=dict(type="GN", num_groups=4),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss"),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="RandomResize", scale=(64, 48), ratio_range=(0.8, 1.5), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(48, 64)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(64, 48), keep_ratio=True),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
dataset = dict(
    type="BaseSegDataset",
    metainfo=dict(classes=classes),
    reduce_zero_label=True,
    img_suffix=".jpg",
    seg_map_suffix=".png",
    data_root="nowhere",
)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=train_pipeline,
        **dataset,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=test_pipeline,
        **dataset,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
train_cfg = dict(type="IterBasedTrainLoop", max_iters=12, val_interval=6)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(checkpoint=dict(type="AtomicCheckpointHook", interval=2))
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=3e-3), clip_grad=dict(max_norm=5.0))
param_scheduler = [dict(type="PolyLR", power=0.9, begin=0, end=12, by_epoch=False)]
