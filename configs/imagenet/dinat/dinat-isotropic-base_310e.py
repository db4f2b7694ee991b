# SPDX-License-Identifier: Apache-2.0
"""va_dinat_isotropic_base trained for 310 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/dinat/dinat-isotropic-base_310e --data DIR

Published: top-1 82.1.
"""

_base_ = "./_dinat.py"

model = dict(name="va_dinat_isotropic_base")
param_scheduler = dict(warmup_epochs=50)
default_hooks = dict(ema=dict(type="EMAHook", momentum=0.0002))
