# SPDX-License-Identifier: Apache-2.0
"""The recipe of DeiT (arXiv:2012.12877), which most of the zoo follows: 300 epochs, AdamW, mixup, RandAugment, erasing.

Learning rates hold for 1,024 images a step over all processes and accumulated steps. `--scale-lr` scales them, with
where the warm-up begins and where the cosine ends, to what a run has. `--data DIR` names the data.
"""

custom_imports = dict(imports=["visionattn.openmmlab"], allow_failed_imports=False)

model = dict(
    type="TimmClassifier",
    num_classes=1000,
    label_smoothing=0.1,
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, mode="batch"),
)

train_pipeline = dict(
    type="ImageNetTrain",
    size=224,
    scale=(0.08, 1.0),
    ratio=(3 / 4, 4 / 3),
    interpolation="bicubic",
    hflip=0.5,
    auto_augment="rand-m9-mstd0.5-inc1",
    color_jitter=0.4,
    erase_prob=0.25,
)
test_pipeline = dict(type="ImageNetEval", size=224, crop_pct=0.875, crop_mode="center", interpolation="bicubic")

train_dataloader = dict(
    batch_size=128,  # for each of eight processes
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="drop_bad"),
    dataset=dict(
        type="ImageFolderDataset", root="data/imagenet", split="train", pipeline=train_pipeline, on_bad_image="skip"
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="drop_bad"),
    dataset=dict(
        type="ImageFolderDataset", root="data/imagenet", split="test", pipeline=test_pipeline, on_bad_image="skip"
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="TopKAccuracy", topk=(1, 5))
test_evaluator = val_evaluator

train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmParamGroups",
    paramwise_cfg=dict(layer_decay=None),
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    accumulative_counts=1,
)
auto_scale_lr = dict(enable=False, base_batch_size=1024)
param_scheduler = dict(
    type="TimmSchedule",
    convert_to_iter_based=True,
    schedule="cosine",
    warmup_epochs=5,
    warmup_factor=1e-3,
    min_factor=0.01,
    cooldown_epochs=0,
)

default_hooks = dict(logger=None, checkpoint=dict(type="AtomicCheckpointHook", monitor="top1", interval=1000))
custom_hooks = [
    dict(type="EpochSeedHook"),
    dict(type="MetricsHook", interval=100),
    dict(type="ProgressHook"),
    dict(type="ThroughputHook", interval=100),
]
visualizer = dict(type="Visualizer", vis_backends=[dict(type="TensorboardVisBackend")])
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),  # gloo where there is no GPU
)
find_unused_parameters = False
randomness = dict(seed=0)
load_from = None
resume = False
