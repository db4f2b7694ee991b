# SPDX-License-Identifier: Apache-2.0
"""The host and the recipe that `builtin/mixers/` has in common: a small pyramid, on scans of handwritten digits.

The mixer is that of the two last blocks, at stride 16, where images of 1024 pixels have 4,096 tokens; blocks at
strides 4 and 8 have an MLP alone. Convolutions between them see edges, so that a minute is enough to learn from.
"""

epochs = 9
size = 64  # pixels; the 8x8 scans are enlarged

custom_imports = dict(imports=["visionattn.openmmlab"])

model = dict(
    type="TimmClassifier",
    name="va_pyramid_tiny",
    num_classes=10,
    kwargs=dict(depths=(1, 1, 2), embed_dim=16, num_heads=(1, 2, 4), mlp_ratio=2.0, drop_path_rate=0.0),
    label_smoothing=0.1,
)

train_pipeline = dict(
    type="ImageNetTrain",
    size=size,
    scale=(0.85, 1.0),
    ratio=(0.9, 1.1),
    hflip=0.0,
    color_jitter=None,
    interpolation="bilinear",
)
test_pipeline = dict(type="ImageNetEval", size=size, crop_pct=1.0, interpolation="bilinear")

train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="drop_bad"),
    dataset=dict(type="DigitsDataset", split="train", size=size, pipeline=train_pipeline, on_bad_image="skip"),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="drop_bad"),
    dataset=dict(type="DigitsDataset", split="test", size=size, pipeline=test_pipeline, on_bad_image="skip"),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="TopKAccuracy", topk=(1, 5))
test_evaluator = val_evaluator

train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=epochs)
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmParamGroups",
    paramwise_cfg=dict(layer_decay=None),
    optimizer=dict(type="AdamW", lr=5e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=1, end=epochs, convert_to_iter_based=True),
]

default_hooks = dict(logger=None, checkpoint=dict(type="AtomicCheckpointHook", monitor="top1"))
custom_hooks = [dict(type="EpochSeedHook"), dict(type="MetricsHook", interval=10), dict(type="ProgressHook")]
visualizer = dict(type="Visualizer", vis_backends=[])
randomness = dict(seed=0)
