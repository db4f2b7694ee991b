# SPDX-License-Identifier: Apache-2.0
"""UPerNet on va_vim_tiny, ADE20K, 60k.

    visionattn train ade20k/upernet_vim-tiny_60k

The settings of the authors' script. No figure is known. Images have the size of the crops, 512.
"""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_batch2.py",
    "../_base_/schedules/ade20k_160k.py",
    "../_base_/dense_runtime.py",
]

model = dict(
    backbone=dict(name="va_vim_tiny", taps=(5, 11, 17, 23), img_size=512),
    decode_head=dict(channels=192),
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(341, 341)),
)
train_cfg = dict(max_iters=60000, val_interval=6000)
# The authors meant rates to fall from layer to layer; in effect the embedding alone learns slower.
optim_wrapper = dict(
    optimizer=dict(lr=2e-4, weight_decay=0.1),
    paramwise_cfg=dict(
        custom_keys={
            "backbone.model.stem": dict(lr_mult=0.92**25),
            "pos_embed": dict(lr_mult=0.92**25, decay_mult=0.0),
            "A_log": dict(decay_mult=0.0),
            "dt_bias": dict(decay_mult=0.0),
        },
    ),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, begin=1500, end=60000, by_epoch=False),
]
