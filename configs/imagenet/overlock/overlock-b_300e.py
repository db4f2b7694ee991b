# SPDX-License-Identifier: Apache-2.0
"""va_overlock_b trained for 300 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/overlock/overlock-b_300e --data DIR

Published: top-1 85.1.
"""

_base_ = "./_overlock.py"

model = dict(name="va_overlock_b")
test_pipeline = dict(crop_pct=0.975)
val_dataloader = dict(dataset=dict(pipeline=dict(crop_pct=0.975)))
test_dataloader = dict(dataset=dict(pipeline=dict(crop_pct=0.975)))
