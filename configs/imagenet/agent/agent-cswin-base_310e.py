# SPDX-License-Identifier: Apache-2.0
"""va_agent_cswin_base trained for 310 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/agent/agent-cswin-base_310e --data DIR

Published: top-1 84.7.
"""

_base_ = "./_cswin.py"

model = dict(name="va_agent_cswin_base")
train_dataloader = dict(batch_size=64)
val_dataloader = dict(dataset=dict(pipeline=dict(crop_mode="squash")))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(weight_decay=0.1))
auto_scale_lr = dict(base_batch_size=512)
default_hooks = dict(ema=dict(type="EMAHook", momentum=8e-05))
