# SPDX-License-Identifier: Apache-2.0
"""va_agent_swin_small_288 trained for 300 epochs on ImageNet-1K, 288x288.

    visionattn train imagenet/agent/agent-swin-small-288_300e --data DIR

Published: top-1 84.1.
"""

_base_ = "./_swin.py"

model = dict(name="va_agent_swin_small_288")
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=dict(size=288)))
val_dataloader = dict(dataset=dict(pipeline=dict(size=288, crop_pct=1.0, crop_mode="squash")))
test_dataloader = val_dataloader
auto_scale_lr = dict(base_batch_size=512)
