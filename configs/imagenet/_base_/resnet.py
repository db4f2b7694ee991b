# SPDX-License-Identifier: Apache-2.0
"""The recipe of ResNet (arXiv:1512.03385): SGD for 100 epochs, a tenth of the rate every 30, crops and flips alone.

The learning rate holds for 256 images a step.
"""

_base_ = "./deit.py"

model = dict(label_smoothing=0.0, mixup=None)
train_dataloader = dict(
    batch_size=32,
    dataset=dict(
        pipeline=dict(interpolation="bilinear", auto_augment=None, color_jitter=None, erase_prob=0.0),
    ),
)
val_dataloader = dict(dataset=dict(pipeline=dict(interpolation="bilinear")))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=100)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4),  # on every parameter
)
auto_scale_lr = dict(base_batch_size=256)
param_scheduler = dict(
    _delete_=True,
    type="TimmSchedule",
    convert_to_iter_based=True,
    schedule="step",
    decay_epochs=30,
    decay_rate=0.1,
    warmup_epochs=0,
)
