# SPDX-License-Identifier: Apache-2.0
"""va_mambaout_kobe trained for 310 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/mambaout/mambaout-kobe_310e --data DIR

Published: top-1 80.
"""

_base_ = "./_mambaout.py"

model = dict(name="va_mambaout_kobe")
val_dataloader = dict(dataset=dict(pipeline=dict(crop_pct=1.0)))
test_dataloader = val_dataloader
