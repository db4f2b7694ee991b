# SPDX-License-Identifier: Apache-2.0
"""va_overlock_xt trained for 300 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/overlock/overlock-xt_300e --data DIR

Published: top-1 82.7.
"""

_base_ = "./_overlock.py"

model = dict(name="va_overlock_xt")
test_pipeline = dict(crop_pct=0.925)
val_dataloader = dict(dataset=dict(pipeline=dict(crop_pct=0.925)))
test_dataloader = dict(dataset=dict(pipeline=dict(crop_pct=0.925)))
