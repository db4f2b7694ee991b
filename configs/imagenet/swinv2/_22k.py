# SPDX-License-Identifier: Apache-2.0
"""Swin V2 pre-trained on ImageNet-22K: Swin's recipe with more weight decay."""

_base_ = "../_base_/pretrain_22k.py"

optim_wrapper = dict(optimizer=dict(weight_decay=0.1))
