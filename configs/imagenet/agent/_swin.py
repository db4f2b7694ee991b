# SPDX-License-Identifier: Apache-2.0
"""The recipe of Agent Attention (arXiv:2312.08874) in Swin and DeiT: Swin's with half its rate."""

_base_ = "../_base_/swin.py"

optim_wrapper = dict(optimizer=dict(lr=0.0005))
