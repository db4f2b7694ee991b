# SPDX-License-Identifier: Apache-2.0
"""The mixer `halo` in the host of `visionattn study builtin/mixers`.

Alone: visionattn train builtin/mixers/halo
"""

_base_ = "../../_base_/mixer_study.py"

model = dict(kwargs=dict(mixers=("identity", "identity", "halo")))
