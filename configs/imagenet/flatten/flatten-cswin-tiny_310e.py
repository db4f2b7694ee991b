# SPDX-License-Identifier: Apache-2.0
"""va_flatten_cswin_tiny trained for 310 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/flatten/flatten-cswin-tiny_310e --data DIR

Published: top-1 83.1.
"""

_base_ = "./_cswin.py"

model = dict(name="va_flatten_cswin_tiny")
train_dataloader = dict(batch_size=256)
val_dataloader = dict(dataset=dict(pipeline=dict(crop_mode="squash")))
test_dataloader = val_dataloader
auto_scale_lr = dict(base_batch_size=2048)
