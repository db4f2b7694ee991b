# SPDX-License-Identifier: Apache-2.0
"""A config for tests: a one-block ViT with dropped paths on a few digits, a second a run."""

custom_imports = dict(imports=["visionattn.openmmlab"])
train_pipeline = [
    dict(type="Affine", rotate=(-12, 12), translate_percent=(-0.1, 0.1), p=0.9),
    dict(type="Resize", height=24, width=16),
    dict(type="Normalize"),
    dict(type="ToTensorV2"),
]
model = dict(
    type="TimmClassifier",
    name="test_vit",
    num_classes=10,
    kwargs=dict(img_size=(24, 16), patch_size=8, depth=1, drop_path_rate=0.3),
    label_smoothing=0.1,
)
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    num_batch_per_epoch=3,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="drop_bad"),
    dataset=dict(type="DigitsDataset", split="train", size=16, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=0,
    num_batch_per_epoch=2,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="drop_bad"),
    dataset=dict(type="DigitsDataset", split="test", size=16, pipeline=train_pipeline[1:]),
)
test_dataloader = val_dataloader
train_cfg = dict(by_epoch=True, max_epochs=4, val_interval=1)
val_cfg = dict()
test_cfg = dict()
val_evaluator = dict(type="TopKAccuracy")
test_evaluator = val_evaluator
optim_wrapper = dict(
    constructor="TimmParamGroups", paramwise_cfg=dict(), optimizer=dict(type="AdamW", lr=3e-3, weight_decay=0.05)
)
param_scheduler = [dict(type="CosineAnnealingLR", by_epoch=True, T_max=4, convert_to_iter_based=True)]
default_hooks = dict(logger=None, checkpoint=dict(type="AtomicCheckpointHook", monitor="top1"))
custom_hooks = [dict(type="EpochSeedHook"), dict(type="MetricsHook", interval=2), dict(type="ProgressHook")]
visualizer = dict(type="Visualizer", vis_backends=[])
randomness = dict(seed=3)
