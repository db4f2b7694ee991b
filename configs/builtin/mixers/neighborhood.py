# SPDX-License-Identifier: Apache-2.0
"""The mixer `neighborhood` in the host of `visionattn study builtin/mixers`.

Alone: visionattn train builtin/mixers/neighborhood
"""

_base_ = "../../_base_/mixer_study.py"

model = dict(kwargs=dict(mixers=("identity", "identity", "neighborhood")))
