# SPDX-License-Identifier: Apache-2.0
"""UPerNet on va_vim_small, ADE20K, 60k.

    visionattn train ade20k/upernet_vim-small_60k

The settings of the authors' script. No figure is known. Images have the size of the crops, 512.
"""

_base_ = "./upernet_vim-tiny_60k.py"

model = dict(backbone=dict(name="va_vim_small"), decode_head=dict(channels=384))
