# SPDX-License-Identifier: Apache-2.0
"""ADE20K in crops of 640 pixels, two images a GPU; eight of them make the published batch of 16."""

_base_ = ["mmseg::_base_/datasets/ade20k_640x640.py"]

train_dataloader = dict(batch_size=2)
