# SPDX-License-Identifier: Apache-2.0
"""va_twins_pcpvt_large trained for 300 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/twins/twins-pcpvt-large_300e --data DIR

Published: top-1 83.1.
"""

_base_ = "./_twins.py"

model = dict(name="va_twins_pcpvt_large", kwargs=dict(drop_path_rate=0.5))
