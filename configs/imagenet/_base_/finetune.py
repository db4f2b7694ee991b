# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning as Swin's authors do it: 30 epochs from weights of smaller images or of ImageNet-22K.

The weights are those of `model.kwargs.pretrained_cfg_overlay.file`; position tables of another size are resized.
"""

_base_ = "./swin.py"

model = dict(pretrained=True)
train_cfg = dict(max_epochs=30)
optim_wrapper = dict(optimizer=dict(lr=4e-5, weight_decay=1e-8))
param_scheduler = dict(warmup_epochs=5)
