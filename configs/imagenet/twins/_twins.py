# SPDX-License-Identifier: Apache-2.0
"""The recipe of Twins (arXiv:2104.13840): DeiT's with clipped gradients."""

_base_ = "../_base_/deit.py"

optim_wrapper = dict(clip_grad=dict(max_norm=5.0))
