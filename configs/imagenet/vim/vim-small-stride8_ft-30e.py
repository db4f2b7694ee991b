# SPDX-License-Identifier: Apache-2.0
"""va_vim_small_stride8 fine-tuned for 30 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/vim/vim-small-stride8_ft-30e --data DIR

It starts from the weights of vim-small_300e; model.kwargs.pretrained_cfg_overlay.file names another file. Published:
top-1 81.6.
"""

_base_ = "./_vim.py"

model = dict(
    name="va_vim_small_stride8",
    pretrained=True,
    kwargs=dict(drop_path_rate=0.0, pretrained_cfg_overlay=dict(file="work_dirs/vim-small_300e/best.pth")),
)
train_cfg = dict(max_epochs=30)
optim_wrapper = dict(optimizer=dict(lr=1e-05, weight_decay=1e-08))
