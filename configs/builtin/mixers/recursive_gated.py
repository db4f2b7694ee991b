# SPDX-License-Identifier: Apache-2.0
"""The mixer `recursive_gated` in the host of `visionattn study builtin/mixers`.

Alone: visionattn train builtin/mixers/recursive_gated
"""

_base_ = "../../_base_/mixer_study.py"

model = dict(kwargs=dict(mixers=("identity", "identity", "recursive_gated")))
