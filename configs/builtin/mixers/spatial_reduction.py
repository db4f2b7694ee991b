# SPDX-License-Identifier: Apache-2.0
"""The mixer `spatial_reduction` in the host of `visionattn study builtin/mixers`.

Alone: visionattn train builtin/mixers/spatial_reduction
"""

_base_ = "../../_base_/mixer_study.py"

model = dict(kwargs=dict(mixers=("identity", "identity", "spatial_reduction")))
