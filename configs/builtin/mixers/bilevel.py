# SPDX-License-Identifier: Apache-2.0
"""The mixer `bilevel` in the host of `visionattn study builtin/mixers`.

Alone: visionattn train builtin/mixers/bilevel
"""

_base_ = "../../_base_/mixer_study.py"

model = dict(kwargs=dict(mixers=("identity", "identity", "bilevel")))
