# SPDX-License-Identifier: Apache-2.0
"""va_agent_pvt_tiny trained for 310 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/agent/agent-pvt-tiny_310e --data DIR

Published: top-1 78.4.
"""

_base_ = "./_pvt.py"

model = dict(name="va_agent_pvt_tiny")
val_dataloader = dict(dataset=dict(pipeline=dict(crop_mode="squash")))
test_dataloader = val_dataloader
