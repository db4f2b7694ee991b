# SPDX-License-Identifier: Apache-2.0
"""va_agent_deit_base trained for 300 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/agent/agent-deit-base_300e --data DIR

Published: top-1 82.
"""

_base_ = "./_swin.py"

model = dict(name="va_agent_deit_base")
train_dataloader = dict(batch_size=64)
val_dataloader = dict(dataset=dict(pipeline=dict(crop_mode="squash")))
test_dataloader = val_dataloader
auto_scale_lr = dict(base_batch_size=512)
