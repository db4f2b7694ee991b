# SPDX-License-Identifier: Apache-2.0
"""va_vim_small trained for 300 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/vim/vim-small_300e --data DIR

Published: top-1 80.5.
"""

_base_ = "./_vim.py"

model = dict(name="va_vim_small", kwargs=dict(drop_path_rate=0.05))
train_dataloader = dict(batch_size=64)
auto_scale_lr = dict(base_batch_size=512)
