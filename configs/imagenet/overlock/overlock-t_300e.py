# SPDX-License-Identifier: Apache-2.0
"""va_overlock_t trained for 300 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/overlock/overlock-t_300e --data DIR

Published: top-1 84.2.
"""

_base_ = "./_overlock.py"

model = dict(name="va_overlock_t")
test_pipeline = dict(crop_pct=0.95)
val_dataloader = dict(dataset=dict(pipeline=dict(crop_pct=0.95)))
test_dataloader = dict(dataset=dict(pipeline=dict(crop_pct=0.95)))
