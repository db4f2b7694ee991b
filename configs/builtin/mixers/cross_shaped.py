# SPDX-License-Identifier: Apache-2.0
"""The mixer `cross_shaped` in the host of `visionattn study builtin/mixers`.

Alone: visionattn train builtin/mixers/cross_shaped
"""

_base_ = "../../_base_/mixer_study.py"

model = dict(kwargs=dict(mixers=("identity", "identity", "cross_shaped")))
