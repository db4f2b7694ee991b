# SPDX-License-Identifier: Apache-2.0
"""UPerNet on va_agent_swin_small, ADE20K, 160k.

    visionattn train ade20k/upernet_agent-swin-small_160k

The authors' settings. Published: mIoU 48.08.
"""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_batch2.py",
    "../_base_/schedules/ade20k_160k.py",
    "../_base_/dense_runtime.py",
]

model = dict(backbone=dict(name="va_agent_swin_small", drop_path_rate=0.3))
