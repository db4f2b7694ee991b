# SPDX-License-Identifier: Apache-2.0
"""The module `mmcv._ext` without a compiler: its ops from torchvision's, our kernels and plain PyTorch.

mmcv's Python code calls its compiled ops through this module, and most of its outputs are tensors that the caller makes
and the op fills. Signatures here are those of mmcv 2.1's calls. CornerPool, SAConv, CrissCrossAttention and others are
Python in mmcv itself and need nothing. What is not here raises NotImplementedError when it is called.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

import torch

from visionattn.openmmlab.mmcv_ext import boxes, deform, focal, nms, norm, reassembly, roi, text

NAME = "mmcv._ext"


def get_compiler_version() -> str:
    """What stands in mmcv's reports for the compiler."""
    return "none: visionattn's ops"


def get_compiling_cuda_version() -> str:
    """What stands in mmcv's reports for the compiler's CUDA: PyTorch's."""
    return torch.version.cuda or "not available"


OPS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        get_compiler_version,
        get_compiling_cuda_version,
        boxes.bbox_overlaps,
        boxes.box_iou_rotated,
        deform.deform_conv_forward,
        deform.deform_conv_backward_input,
        deform.deform_conv_backward_parameters,
        deform.modulated_deform_conv_forward,
        deform.modulated_deform_conv_backward,
        deform.ms_deform_attn_forward,
        deform.ms_deform_attn_backward,
        focal.sigmoid_focal_loss_forward,
        focal.sigmoid_focal_loss_backward,
        focal.softmax_focal_loss_forward,
        focal.softmax_focal_loss_backward,
        nms.nms,
        nms.softnms,
        nms.nms_match,
        nms.nms_rotated,
        norm.sync_bn_forward_mean,
        norm.sync_bn_forward_var,
        norm.sync_bn_forward_output,
        norm.sync_bn_backward_param,
        norm.sync_bn_backward_data,
        reassembly.carafe_naive_forward,
        reassembly.carafe_naive_backward,
        reassembly.carafe_forward,
        reassembly.carafe_backward,
        reassembly.masked_im2col_forward,
        reassembly.masked_col2im_forward,
        reassembly.psamask_forward,
        reassembly.psamask_backward,
        roi.roi_align_forward,
        roi.roi_align_backward,
        roi.roi_pool_forward,
        roi.roi_pool_backward,
        roi.roi_align_rotated_forward,
        roi.roi_align_rotated_backward,
        roi.deform_roi_pool_forward,
        roi.deform_roi_pool_backward,
        roi.prroi_pool_forward,
        roi.prroi_pool_backward,
        roi.prroi_pool_coor_backward,
        roi.border_align_forward,
        roi.border_align_backward,
        text.contour_expand,
        text.pixel_group,
    )
}

# Ops of 3-D detection, generative models and others that no model of mmdet 3.3 or mmsegmentation 1.2 calls.
MISSING = (
    "active_rotated_filter_forward", "active_rotated_filter_backward", "assign_score_withk_forward",
    "assign_score_withk_backward", "ball_query_forward", "stack_ball_query_forward", "bezier_align_forward",
    "bezier_align_backward", "bias_act", "box_iou_quadri", "chamfer_distance_forward", "chamfer_distance_backward",
    "convex_iou", "convex_giou", "correlation_forward", "correlation_backward",
    "diff_iou_rotated_sort_vertices_forward",
    "filtered_lrelu", "filtered_lrelu_act_", "furthest_point_sampling_forward",
    "furthest_point_sampling_with_dist_forward", "fused_bias_leakyrelu", "gather_points_forward",
    "gather_points_backward", "group_points_forward", "group_points_backward", "stack_group_points_forward",
    "stack_group_points_backward", "iou3d_boxes_overlap_bev_forward", "iou3d_nms3d_forward",
    "iou3d_nms3d_normal_forward", "knn_forward", "min_area_polygons", "nms_quadri", "points_in_boxes_part_forward",
    "points_in_boxes_cpu_forward", "points_in_boxes_all_forward", "points_in_polygons_forward",
    "riroi_align_rotated_forward", "riroi_align_rotated_backward", "roiaware_pool3d_forward",
    "roiaware_pool3d_backward", "roipoint_pool3d_forward", "rotated_feature_align_forward",
    "rotated_feature_align_backward", "dynamic_point_to_voxel_forward", "dynamic_point_to_voxel_backward",
    "get_indice_pairs_2d_forward", "get_indice_pairs_3d_forward", "get_indice_pairs_4d_forward",
    "get_indice_pairs_2d_backward", "get_indice_pairs_3d_backward", "indice_conv_forward", "indice_conv_backward",
    "fused_indice_conv_forward", "indice_maxpool_forward", "indice_maxpool_backward", "three_interpolate_forward",
    "three_interpolate_backward", "three_nn_forward", "tin_shift_forward", "tin_shift_backward", "upfirdn2d",
    "dynamic_voxelize_forward", "hard_voxelize_forward",
)  # fmt: skip


def _missing(name: str) -> Callable[..., NoReturn]:
    def op(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f"{NAME}.{name} is not among the ops that visionattn provides; it needs mmcv's compiled extension: "
            "`pip uninstall mmcv-lite`, then `pip install mmcv==2.1.0` from source or from a wheel for your PyTorch "
            "(https://mmcv.readthedocs.io/en/2.x/get_started/installation.html)"
        )

    op.__name__ = op.__qualname__ = name
    return op


class _Loader(importlib.abc.Loader):
    """Gives the one module there is; with it `importlib` and `pkgutil` find it like any other."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _MODULE

    def exec_module(self, module: ModuleType) -> None:
        pass


def _make_module() -> ModuleType:
    module = ModuleType(NAME, __doc__)
    module.__spec__ = importlib.machinery.ModuleSpec(NAME, _Loader(), origin=__file__)
    module.__loader__ = module.__spec__.loader
    module.__package__ = "mmcv"
    for name in MISSING:
        setattr(module, name, _missing(name))
    for name, function in OPS.items():
        setattr(module, name, function)
    return module


_MODULE = _make_module()


def install() -> bool:
    """Let `mmcv._ext` be ours where mmcv is installed and has none of its own. Imports nothing of mmcv.

    Returns:
        Whether `mmcv._ext` is ours now; a compiled one, or another provider's, is left alone.
    """
    if NAME not in sys.modules and _compiled_is_missing():
        sys.modules[NAME] = _MODULE
    return sys.modules.get(NAME) is _MODULE


def _compiled_is_missing() -> bool:
    package = importlib.util.find_spec("mmcv")
    if package is None or package.submodule_search_locations is None:
        return False
    return importlib.machinery.PathFinder.find_spec(NAME, list(package.submodule_search_locations)) is None
