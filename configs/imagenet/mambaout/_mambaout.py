# SPDX-License-Identifier: Apache-2.0
"""The recipe of MambaOut (arXiv:2405.07992): ConvNeXt's with ten epochs at the lowest rate."""

_base_ = "../_base_/convnext.py"

train_cfg = dict(max_epochs=310)
param_scheduler = dict(warmup_factor=0.00025, min_factor=0.0025, cooldown_epochs=10)
