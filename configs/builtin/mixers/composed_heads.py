# SPDX-License-Identifier: Apache-2.0
"""The mixer `composed_heads` in the host of `visionattn study builtin/mixers`.

Alone: visionattn train builtin/mixers/composed_heads
"""

_base_ = "../../_base_/mixer_study.py"

model = dict(kwargs=dict(mixers=("identity", "identity", "composed_heads")))
