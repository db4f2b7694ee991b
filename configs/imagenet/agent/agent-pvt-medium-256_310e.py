# SPDX-License-Identifier: Apache-2.0
"""va_agent_pvt_medium_256 trained for 310 epochs on ImageNet-1K, 256x256.

    visionattn train imagenet/agent/agent-pvt-medium-256_310e --data DIR

Published: top-1 83.8.
"""

_base_ = "./_pvt.py"

model = dict(name="va_agent_pvt_medium_256")
train_dataloader = dict(dataset=dict(pipeline=dict(size=256)))
val_dataloader = dict(dataset=dict(pipeline=dict(size=256, crop_mode="squash")))
test_dataloader = val_dataloader
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
