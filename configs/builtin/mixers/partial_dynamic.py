# SPDX-License-Identifier: Apache-2.0
"""The mixer `partial_dynamic` in the host of `visionattn study builtin/mixers`.

Alone: visionattn train builtin/mixers/partial_dynamic
"""

_base_ = "../../_base_/mixer_study.py"

model = dict(kwargs=dict(mixers=("identity", "identity", "partial_dynamic")))
