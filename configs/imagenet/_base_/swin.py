# SPDX-License-Identifier: Apache-2.0
"""The recipe of Swin (arXiv:2103.14030): DeiT's with a warm-up of 20 epochs, and gradients clipped."""

_base_ = "./deit.py"

optim_wrapper = dict(clip_grad=dict(max_norm=5.0))
param_scheduler = dict(warmup_epochs=20)
