# SPDX-License-Identifier: Apache-2.0
"""The mixer `pooling` in the host of `visionattn study builtin/mixers`.

Alone: visionattn train builtin/mixers/pooling
"""

_base_ = "../../_base_/mixer_study.py"

model = dict(kwargs=dict(mixers=("identity", "identity", "pooling")))
