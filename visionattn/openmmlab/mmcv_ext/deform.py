# SPDX-License-Identifier: Apache-2.0
"""Deformable convolution, arXiv 1703.06211 and 1811.11168, and multi-scale deformable attention, arXiv 2010.04159."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor

from visionattn.kernels import ms_deform_attn
from visionattn.openmmlab.mmcv_ext.gradients import gradients, wide


class Geometry(NamedTuple):
    """What a deformable convolution has beside its tensors; pairs are (y, x)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    offset_groups: int

    def arguments(self, masked: bool) -> tuple[int | bool, ...]:
        """As torchvision's op wants them."""
        return *self.stride, *self.padding, *self.dilation, self.groups, self.offset_groups, masked

    def output_size(self, x: Tensor) -> tuple[int, int]:
        """Height and width of the output."""
        rows, columns = (
            (x.shape[2 + i] + 2 * self.padding[i] - self.dilation[i] * (self.kernel[i] - 1) - 1) // self.stride[i] + 1
            for i in (0, 1)
        )
        return rows, columns

    def check(self, x: Tensor, weight: Tensor) -> None:
        """Raise ValueError unless input, weight and groups fit together."""
        if x.ndim != 4 or weight.ndim != 4 or weight.shape[2:] != self.kernel:
            raise ValueError(f"input {tuple(x.shape)} and weight {tuple(weight.shape)} must be (B, C, H, W) and "
                             f"(O, C / groups, {self.kernel[0]}, {self.kernel[1]})")  # fmt: skip
        if x.shape[1] != weight.shape[1] * self.groups or weight.shape[0] % self.groups:
            raise ValueError(f"group={self.groups} does not fit {x.shape[1]} input channels and weight "
                             f"{tuple(weight.shape)}")  # fmt: skip
        if x.shape[1] % self.offset_groups:
            raise ValueError(f"deformable_group={self.offset_groups} must divide the {x.shape[1]} input channels")

    def offset_shape(self, x: Tensor, a_tap: int) -> tuple[int, int, int]:
        """Shape of an image's offsets (`a_tap` 2) or mask (1)."""
        return (a_tap * self.offset_groups * math.prod(self.kernel), *self.output_size(x))


def reread(name: str, x: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """`x` (B, C, h, w) as compiled kernels read it: the first numbers of each image, row by row, as if it had `shape`.

    Modulated deformable convolution takes offsets of a larger map than its output. Dynamic Head, arXiv 2106.08322,
    gives it such offsets, and its published weights were trained that way.

    Raises:
        ValueError: Another number of channels, or too few pixels.
    """
    if x.ndim != 4 or x.shape[1] != shape[0]:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be (B, {shape[0]}, {shape[1]}, {shape[2]})")
    if x.shape[1:] == shape:
        return x
    if x.shape[2] * x.shape[3] < shape[1] * shape[2]:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; an output of {shape[1]}x{shape[2]} needs as many pixels")
    return x.flatten(1)[:, : math.prod(shape)].unflatten(1, shape)


def _write_back(grad: Tensor, read: Tensor) -> None:
    """Write the gradient of what `reread` gave into that of what it was given."""
    if grad.shape == read.shape:
        grad.copy_(read)
        return
    flat = read.new_zeros(len(grad), math.prod(grad.shape[1:]))
    flat[:, : math.prod(read.shape[1:])] = read.flatten(1)
    grad.copy_(flat.view(grad.shape))


def _no_mask(x: Tensor) -> Tensor:
    return x.new_zeros(len(x), 1)


def _forward(
    x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None, g: Geometry
) -> Tensor:
    tensors = [wide(t) for t in (x, weight, offset, _no_mask(x) if mask is None else mask)]
    tensors.append(tensors[1].new_zeros(len(weight)) if bias is None else wide(bias))
    return torch.ops.torchvision.deform_conv2d(*tensors, *g.arguments(mask is not None))


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, g: Geometry
) -> tuple[Tensor, ...]:
    """Gradients of input, weight, offset, mask and bias."""
    tensors = [wide(t) for t in (grad, x, weight, offset, _no_mask(x) if mask is None else mask)]
    bias = tensors[2].new_zeros(len(weight))
    return torch.ops.torchvision._deform_conv2d_backward(*tensors, bias, *g.arguments(mask is not None))


# --- first version ----------------------------------------------------------------------------------------------------


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Write the convolution of an input that is read where offsets point.

    Args:
        input: (B, C, H, W).
        weight: (O, C / group, kH, kW).
        offset: (B, 2 * deformable_group * kH * kW, rows, columns of the output), (dy, dx) of each tap in turn.
        output: (B, O, rows, columns).
        columns: Unused.
        ones: Unused.
        kW: Width of the kernel.
        kH: Height of the kernel.
        dW: Stride along x.
        dH: Stride along y.
        padW: Padding along x.
        padH: Padding along y.
        dilationW: Dilation along x.
        dilationH: Dilation along y.
        group: Groups of the convolution.
        deformable_group: Groups of input channels with offsets of their own.
        im2col_step: Unused.

    Raises:
        ValueError: Shapes don't fit together.
    """
    g = Geometry((kH, kW), (dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    _check_offset(input, weight, offset, g)
    output.copy_(_forward(input, weight, offset, None, None, g))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Write the gradients of input and offset; arguments as in `deform_conv_forward`."""
    g = Geometry((kH, kW), (dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    _check_offset(input, weight, offset, g)
    grads = _backward(grad_output, input, weight, offset, None, g)
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Write the gradient of the weight times `scale`; other arguments as in `deform_conv_forward`."""
    g = Geometry((kH, kW), (dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    _check_offset(input, grad_weight, offset, g)
    grad_weight.copy_(scale * _backward(grad_output, input, torch.zeros_like(grad_weight), offset, None, g)[1])


def _check_offset(x: Tensor, weight: Tensor, offset: Tensor, g: Geometry) -> None:
    g.check(x, weight)
    expected = (len(x), *g.offset_shape(x, 2))
    if offset.shape != expected:
        raise ValueError(f"offset has shape {tuple(offset.shape)}; it must be {expected}")


# --- second version: with a mask --------------------------------------------------------------------------------------


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Write the convolution of an input that is read where offsets point, each sample times its mask.

    Args:
        input: (B, C, H, W).
        weight: (O, C / group, kernel_h, kernel_w).
        bias: (O,); unused unless `with_bias`.
        ones: Unused.
        offset: (B, 2 * deformable_group * kernel_h * kernel_w, h, w), (dy, dx) of each tap in turn; h and w are the
            output's, or those of a larger map, see `reread`.
        mask: (B, deformable_group * kernel_h * kernel_w, h, w).
        output: (B, O, rows, columns).
        columns: Unused.
        kernel_h: Height of the kernel.
        kernel_w: Width of the kernel.
        stride_h: Stride along y.
        stride_w: Stride along x.
        pad_h: Padding along y.
        pad_w: Padding along x.
        dilation_h: Dilation along y.
        dilation_w: Dilation along x.
        group: Groups of the convolution.
        deformable_group: Groups of input channels with offsets and masks of their own.
        with_bias: Whether there is a bias.

    Raises:
        ValueError: Shapes don't fit together.
    """
    g = Geometry((kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group,
                 deformable_group)  # fmt: skip
    g.check(input, weight)
    offset = reread("offset", offset, g.offset_shape(input, 2))
    mask = reread("mask", mask, g.offset_shape(input, 1))
    output.copy_(_forward(input, weight, offset, mask, bias if with_bias else None, g))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Write all gradients; arguments as in `modulated_deform_conv_forward`."""
    g = Geometry((kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group,
                 deformable_group)  # fmt: skip
    read = reread("offset", offset, g.offset_shape(input, 2)), reread("mask", mask, g.offset_shape(input, 1))
    grads = _backward(grad_output, input, weight, *read, g)
    grad_input.copy_(grads[0])
    grad_weight.copy_(grads[1])
    _write_back(grad_offset, grads[2])
    _write_back(grad_mask, grads[3])
    if with_bias:
        grad_bias.copy_(grads[4])


# --- attention --------------------------------------------------------------------------------------------------------


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    im2col_step: int,
) -> Tensor:
    """Output of `visionattn.kernels.ms_deform_attn`; `im2col_step` is unused."""
    return ms_deform_attn(value, spatial_shapes, level_start_index, sampling_loc, attn_weight)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Write the gradients of value, sampling locations and attention weights."""

    def attend(value: Tensor, places: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn(value, spatial_shapes, level_start_index, places, weights)

    grads = gradients(attend, (value, sampling_loc, attn_weight), grad_output)
    for buffer, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        buffer.copy_(grad)
