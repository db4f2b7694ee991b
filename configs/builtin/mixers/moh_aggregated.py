# SPDX-License-Identifier: Apache-2.0
"""The mixer `moh_aggregated` in the host of `visionattn study builtin/mixers`.

Alone: visionattn train builtin/mixers/moh_aggregated
"""

_base_ = "../../_base_/mixer_study.py"

model = dict(kwargs=dict(mixers=("identity", "identity", "moh_aggregated")))
