# SPDX-License-Identifier: Apache-2.0
"""va_swin_small pre-trained for 90 epochs on ImageNet-22K, 224x224.

visionattn train imagenet/swin/swin-small_22k-90e --data DIR
"""

_base_ = "../_base_/pretrain_22k.py"

model = dict(name="va_swin_small", kwargs=dict(drop_path_rate=0.2))
