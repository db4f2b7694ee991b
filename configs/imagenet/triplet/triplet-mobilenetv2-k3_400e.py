# SPDX-License-Identifier: Apache-2.0
"""va_triplet_mobilenetv2_k3 trained for 400 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/triplet/triplet-mobilenetv2-k3_400e --data DIR

Published: top-1 72.62.
"""

_base_ = "../_base_/resnet.py"

model = dict(name="va_triplet_mobilenetv2_k3")
train_dataloader = dict(batch_size=96)
train_cfg = dict(max_epochs=400)
optim_wrapper = dict(optimizer=dict(lr=0.045, weight_decay=4e-05))
auto_scale_lr = dict(base_batch_size=96)
param_scheduler = dict(decay_epochs=1, decay_rate=0.98)
