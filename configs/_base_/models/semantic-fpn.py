# SPDX-License-Identifier: Apache-2.0
"""Semantic FPN, for 150 classes and crops of 512 pixels."""

_base_ = ["mmseg::_base_/models/fpn_r50.py"]
default_scope = "mmseg"

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(_delete_=True, type="TimmBackbone", pretrained=True),
    neck=dict(in_channels="auto"),
    decode_head=dict(num_classes=150),
)
