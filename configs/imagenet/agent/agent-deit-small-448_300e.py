# SPDX-License-Identifier: Apache-2.0
"""va_agent_deit_small_448 trained for 300 epochs on ImageNet-1K, 448x448.

    visionattn train imagenet/agent/agent-deit-small-448_300e --data DIR

Published: top-1 83.1.
"""

_base_ = "./_swin.py"

model = dict(name="va_agent_deit_small_448")
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=dict(size=448)))
val_dataloader = dict(dataset=dict(pipeline=dict(size=448, crop_mode="squash")))
test_dataloader = val_dataloader
auto_scale_lr = dict(base_batch_size=512)
