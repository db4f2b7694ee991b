# SPDX-License-Identifier: Apache-2.0
"""The mixer `window` in the host of `visionattn study builtin/mixers`.

Alone: visionattn train builtin/mixers/window
"""

_base_ = "../../_base_/mixer_study.py"

model = dict(kwargs=dict(mixers=("identity", "identity", "window")))
