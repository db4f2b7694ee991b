# SPDX-License-Identifier: Apache-2.0
"""va_vim_tiny trained for 300 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/vim/vim-tiny_300e --data DIR

Published: top-1 76.1.
"""

_base_ = "./_vim.py"

model = dict(name="va_vim_tiny", kwargs=dict(drop_path_rate=0.0))
optim_wrapper = dict(optimizer=dict(weight_decay=0.1))
