# SPDX-License-Identifier: Apache-2.0
"""RetinaNet with an FPN from stride 8 on, whose coarse levels come from the last map."""

_base_ = ["mmdet::_base_/models/retinanet_r50_fpn.py"]
default_scope = "mmdet"

model = dict(
    # The map of stride 4 is not made: no weights without gradients.
    backbone=dict(_delete_=True, type="TimmBackbone", pretrained=True, out_indices=(-3, -2, -1)),
    neck=dict(in_channels="auto", start_level=0),
)
