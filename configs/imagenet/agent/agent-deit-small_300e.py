# SPDX-License-Identifier: Apache-2.0
"""va_agent_deit_small trained for 300 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/agent/agent-deit-small_300e --data DIR

Published: top-1 80.5.
"""

_base_ = "./_swin.py"

model = dict(name="va_agent_deit_small")
val_dataloader = dict(dataset=dict(pipeline=dict(crop_mode="squash")))
test_dataloader = val_dataloader
