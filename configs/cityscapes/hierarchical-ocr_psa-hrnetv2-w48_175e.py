# SPDX-License-Identifier: Apache-2.0
"""Object context and attention between scales on va_psa_hrnetv2_w48, Cityscapes, 175 epochs.

    visionattn train cityscapes/hierarchical-ocr_psa-hrnetv2-w48_175e

The authors' settings on eight GPUs with one image each, but for coarse labels and weights from Mapillary; momentum and
decay are mmsegmentation's. Published: mIoU 86.95 at several scales.
`model.checkpoint=FILE` takes the authors' file.
"""

_base_ = ["mmseg::_base_/datasets/cityscapes.py", "../_base_/dense_runtime.py"]
default_scope = "mmseg"
custom_imports = dict(
    imports=["visionattn.openmmlab", "visionattn.openmmlab.heads.hierarchical", "visionattn.openmmlab.heads.rmi"]
)

crop_size = (1024, 2048)
model = dict(
    type="HierarchicalSegmentor",
    scales=(0.5, 1.0, 2.0),
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=crop_size,
    ),
    backbone=dict(type="TimmBackbone", name="va_psa_hrnetv2_w48", pretrained=False),
    decode_head=dict(
        type="HierarchicalOCRHead",
        in_channels="auto",
        num_classes=19,
        loss_decode=dict(type="RegionMutualInformationLoss"),
    ),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(2048, 1024), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(batch_size=1, dataset=dict(pipeline=train_pipeline))

steps = 175 * 2975 // 8
train_cfg = dict(type="IterBasedTrainLoop", max_iters=steps, val_interval=steps // 10)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=5e-3, momentum=0.9, weight_decay=5e-4))
param_scheduler = [dict(type="PolyLR", eta_min=0.0, power=2.0, begin=0, end=steps, by_epoch=False)]
