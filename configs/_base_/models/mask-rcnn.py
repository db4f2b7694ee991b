# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN with an FPN on the backbone that a config names."""

_base_ = ["mmdet::_base_/models/mask-rcnn_r50_fpn.py"]
default_scope = "mmdet"

model = dict(
    backbone=dict(_delete_=True, type="TimmBackbone", pretrained=True),
    neck=dict(in_channels="auto"),
)
