# SPDX-License-Identifier: Apache-2.0
"""A config for tests: Mask R-CNN on a tiny pyramid, a second a run; `--data` says where the data are."""

_base_ = ["../../configs/_base_/dense_runtime.py"]
default_scope = "mmdet"
classes = ("rectangle", "disc")
channels = 16
norm = dict(type="GN", num_groups=4)
nms = dict(type="nms", iou_threshold=0.6)
extractor = dict(
    type="SingleRoIExtractor",
    roi_layer=dict(type="RoIAlign", output_size=5, sampling_ratio=1),
    out_channels=channels,
    featmap_strides=[4, 8],
    finest_scale=24,
)
model = dict(
    type="MaskRCNN",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[100.0] * 3,
        std=[60.0] * 3,
        bgr_to_rgb=True,
        pad_mask=True,
        pad_size_divisor=8,
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
    neck=dict(type="FPN", in_channels="auto", out_channels=channels, num_outs=2, norm_cfg=norm),
    rpn_head=dict(
        type="RPNHead",
        in_channels=channels,
        feat_channels=channels,
        # Two ratios, as mmdet's RPN fails on a map with a single anchor, that of an image of one pixel.
        anchor_generator=dict(type="AnchorGenerator", scales=[4], ratios=[0.8, 1.25], strides=[4, 8]),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder"),
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True),
        loss_bbox=dict(type="L1Loss"),
    ),
    roi_head=dict(
        type="StandardRoIHead",
        bbox_roi_extractor=extractor,
        bbox_head=dict(
            type="Shared2FCBBoxHead",
            in_channels=channels,
            fc_out_channels=32,
            roi_feat_size=5,
            num_classes=len(classes),
            bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_stds=[0.1, 0.1, 0.2, 0.2]),
            loss_cls=dict(type="CrossEntropyLoss"),
            loss_bbox=dict(type="L1Loss"),
        ),
        mask_roi_extractor=extractor,
        mask_head=dict(
            type="FCNMaskHead",
            num_convs=1,
            roi_feat_size=5,
            in_channels=channels,
            conv_out_channels=channels,
            num_classes=len(classes),
            loss_mask=dict(type="CrossEntropyLoss", use_mask=True),
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.6, neg_iou_thr=0.3, min_pos_iou=0.3),
            sampler=dict(type="RandomSampler", num=32, pos_fraction=0.5, add_gt_as_proposals=False),
            allowed_border=-1,
            pos_weight=-1,
        ),
        rpn_proposal=dict(nms_pre=50, max_per_img=20, nms=nms, min_bbox_size=0),
        rcnn=dict(
            assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5),
            sampler=dict(type="RandomSampler", num=16, pos_fraction=0.5),
            mask_size=10,
            pos_weight=-1,
        ),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=50, max_per_img=20, nms=nms, min_bbox_size=0),
        rcnn=dict(score_thr=0.05, nms=nms, max_per_img=10, mask_thr_binary=0.5),
    ),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(64, 48), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
dataset = dict(type="CocoDataset", metainfo=dict(classes=classes), data_root="nowhere/")
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        ann_file="annotations/instances_train2017.json",
        data_prefix=dict(img="train2017/"),
        pipeline=train_pipeline,
        **dataset,
    ),
)
val_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        ann_file="annotations/instances_val2017.json",
        data_prefix=dict(img="val2017/"),
        test_mode=True,
        pipeline=test_pipeline,
        **dataset,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="CocoMetric", ann_file="nowhere/annotations/instances_val2017.json", metric=["bbox", "segm"])
test_evaluator = val_evaluator
train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(type="AdamW", lr=3e-3), clip_grad=dict(max_norm=5.0, norm_type=2)
)
param_scheduler = [dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=5)]
