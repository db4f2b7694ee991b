# SPDX-License-Identifier: Apache-2.0
"""va_twins_svt_small trained for 300 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/twins/twins-svt-small_300e --data DIR

Published: top-1 81.7.
"""

_base_ = "./_twins.py"

model = dict(name="va_twins_svt_small", kwargs=dict(drop_path_rate=0.2))
