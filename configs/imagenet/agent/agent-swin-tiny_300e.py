# SPDX-License-Identifier: Apache-2.0
"""va_agent_swin_tiny trained for 300 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/agent/agent-swin-tiny_300e --data DIR

Published: top-1 82.6.
"""

_base_ = "./_swin.py"

model = dict(name="va_agent_swin_tiny")
val_dataloader = dict(dataset=dict(pipeline=dict(crop_mode="squash")))
test_dataloader = val_dataloader
