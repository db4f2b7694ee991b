# SPDX-License-Identifier: Apache-2.0
"""The mixer `gated_cnn` in the host of `visionattn study builtin/mixers`.

Alone: visionattn train builtin/mixers/gated_cnn
"""

_base_ = "../../_base_/mixer_study.py"

model = dict(kwargs=dict(mixers=("identity", "identity", "gated_cnn")))
