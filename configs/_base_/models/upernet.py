# SPDX-License-Identifier: Apache-2.0
"""UPerNet with an auxiliary head on the map of stride 16, for 150 classes and crops of 512 pixels."""

_base_ = ["mmseg::_base_/models/upernet_r50.py"]
default_scope = "mmseg"

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(_delete_=True, type="TimmBackbone", pretrained=True),
    decode_head=dict(in_channels="auto", num_classes=150),
    auxiliary_head=dict(in_channels="auto", num_classes=150),
)
