# SPDX-License-Identifier: Apache-2.0
"""The recipe of LITv2 (arXiv:2205.13213): Swin's with a hundredth of the rate for offsets of deformable merging."""

_base_ = "../_base_/swin.py"

optim_wrapper = dict(paramwise_cfg=dict(lr_mult={"down.offset": 0.01}))
