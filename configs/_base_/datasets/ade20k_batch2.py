# SPDX-License-Identifier: Apache-2.0
"""ADE20K in crops of 512 pixels, two images a GPU; eight of them make the published batch of 16."""

_base_ = ["mmseg::_base_/datasets/ade20k.py"]

train_dataloader = dict(batch_size=2)
