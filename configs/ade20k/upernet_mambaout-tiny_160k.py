# SPDX-License-Identifier: Apache-2.0
"""UPerNet on va_mambaout_tiny, ADE20K, 160k.

    visionattn train ade20k/upernet_mambaout-tiny_160k

The paper trains with AdamW, a learning rate of 1e-4 and 16 images; the rest is Swin's recipe. No figure is known.
"""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_batch2.py",
    "../_base_/schedules/ade20k_160k.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_mambaout_tiny"))
optim_wrapper = dict(optimizer=dict(lr=1e-4))
