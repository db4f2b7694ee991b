# SPDX-License-Identifier: Apache-2.0
"""The recipe of HorNet (arXiv:2207.14284): ConvNeXt's with averaged weights, and gradients clipped."""

_base_ = "../_base_/convnext.py"

default_hooks = dict(ema=dict(type="EMAHook", momentum=0.0001))
