# SPDX-License-Identifier: Apache-2.0
"""Regions of maps pooled to a fixed size.

Regions are rows (image, x1, y1, x2, y2) in the image's pixels, which `spatial_scale` turns into the map's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor

from visionattn.openmmlab.mmcv_ext.gradients import gradients, wide
from visionattn.openmmlab.mmcv_ext.sampling import CHUNK, Points, Regions, bilinear, bin_points, read_bins

MAX = 0
OUTSIDE = -2  # a coordinate at which every map is zero: where a bin without samples is read
# Corners (indices into a box) at which the top, left, bottom and right borders begin and end.
BEGIN, END = ((0, 1), (0, 1), (0, 3), (2, 1)), ((2, 1), (0, 3), (2, 3), (2, 3))


def _check(x: Tensor, rois: Tensor, columns: int = 5) -> None:
    if x.ndim != 4:
        raise ValueError(f"input has shape {tuple(x.shape)}; it must be (B, C, H, W)")
    if rois.ndim != 2 or rois.shape[1] != columns:
        raise ValueError(f"rois has shape {tuple(rois.shape)}; it must be (n, {columns})")
    # On a GPU the answer would have to be waited for, and a tracer has none.
    if rois.device.type == "cpu" and rois.numel() and not torch.compiler.is_compiling():
        first, last = rois[:, 0].aminmax()
        if first < 0 or last >= len(x):
            raise ValueError(f"rois name images {int(first)} to {int(last)}; there are {len(x)}")


# --- RoIAlign, arXiv 1703.06870 ---------------------------------------------------------------------------------------


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the mean or maximum of bilinear samples in each bin of each region.

    Args:
        input: (B, C, H, W).
        rois: (n, 5).
        output: (n, C, aligned_height, aligned_width).
        argmax_y: Rows of the largest samples, as `output`; unused for the mean.
        argmax_x: Their columns.
        aligned_height: Rows of bins.
        aligned_width: Columns of bins.
        spatial_scale: Pixels of the map in one of the image.
        sampling_ratio: Samples along each axis of a bin; 0 for about one a pixel.
        pool_mode: 0 for the maximum, 1 for the mean.
        aligned: Pixels' centres lie at half numbers; otherwise at whole ones, and no region is smaller than a pixel.

    Raises:
        ValueError: Shapes don't fit together, or a region names an image that is not there.
    """
    _check(input, rois)
    x, rois = wide(input), rois.to(wide(input).dtype)
    if pool_mode != MAX:
        output.copy_(torch.ops.torchvision.roi_align(x, rois, spatial_scale, aligned_height, aligned_width,
                                                     sampling_ratio, aligned))  # fmt: skip
        return
    output.zero_()
    argmax_y.fill_(OUTSIDE)
    argmax_x.fill_(OUTSIDE)
    regions = _regions(rois, spatial_scale, aligned)
    for index, y, columns in bin_points(regions, (aligned_height, aligned_width), sampling_ratio, x.shape[1]):
        samples, which = read_bins(x, regions.image[index], y, columns).max(-1)
        output[index] = samples.to(output.dtype)
        for buffer, places in zip((argmax_y, argmax_x), torch.broadcast_tensors(y, columns), strict=True):
            places = places.flatten(3)[:, None].expand(*which.shape, -1)
            buffer[index] = places.gather(-1, which[..., None])[..., 0].to(buffer.dtype)


def _regions(rois: Tensor, scale: float, aligned: bool) -> Regions:
    left, top, right, bottom = (rois[:, 1:] * scale - (0.5 if aligned else 0)).unbind(1)
    height, width = bottom - top, right - left
    if not aligned:
        height, width = height.clamp(min=1), width.clamp(min=1)
    return Regions(rois[:, 0].long(), top, left, height, width)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of the input; arguments as in `roi_align_forward`."""
    grad = wide(grad_output)
    if pool_mode != MAX:
        grad_input.copy_(torch.ops.torchvision._roi_align_backward(
            grad, rois.to(grad.dtype), spatial_scale, aligned_height, aligned_width, *grad_input.shape, sampling_ratio,
            aligned))  # fmt: skip
        return
    channels = grad_input.shape[1]
    maps = (rois[:, :1].long() * channels + torch.arange(channels, device=rois.device)).flatten()
    places = (t.flatten(0, 1).flatten(1).to(grad.dtype) for t in (argmax_y, argmax_x, grad))
    grad_input.copy_(_scatter(grad_input, maps, *places))


def _scatter(like: Tensor, maps: Tensor, y: Tensor, x: Tensor, grad: Tensor) -> Tensor:
    """Gradient of single-channel maps (of `like` (B, C, H, W), flat) that were read at points (P, S) of maps (P,)."""
    flat = like.new_zeros(like.shape, dtype=grad.dtype).flatten(0, 1)[:, None]
    (result,) = gradients(lambda source: bilinear(source, maps, y, x), [flat], grad[..., None])
    return result.view(like.shape)


# --- RoIPool, arXiv 1504.08083 ----------------------------------------------------------------------------------------


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Write the largest pixel of each bin of each region, whose borders are rounded to pixels.

    Args:
        input: (B, C, H, W).
        rois: (n, 5).
        output: (n, C, pooled_height, pooled_width).
        argmax: Index of the pixel in its map, as `output`; -1 where a bin is empty.
        pooled_height: Rows of bins.
        pooled_width: Columns of bins.
        spatial_scale: Pixels of the map in one of the image.

    Raises:
        ValueError: Shapes don't fit together, or a region names an image that is not there.
    """
    _check(input, rois)
    x = wide(input)
    pooled, which = torch.ops.torchvision.roi_pool(x, rois.to(x.dtype), spatial_scale, pooled_height, pooled_width)
    output.copy_(pooled)
    argmax.copy_(which)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Write the gradient of the input; arguments as in `roi_pool_forward`."""
    grad = wide(grad_output)
    grad_input.copy_(torch.ops.torchvision._roi_pool_backward(
        grad, rois.to(grad.dtype), argmax, spatial_scale, pooled_height, pooled_width, *grad_input.shape))  # fmt: skip


# --- rotated and deformable regions -----------------------------------------------------------------------------------


def roi_align_rotated_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> None:
    """Write the mean of bilinear samples in each bin of each rotated region.

    Args:
        input: (B, C, H, W).
        rois: (n, 6), (image, x and y of the centre, w, h, angle in radians).
        output: (n, C, pooled_height, pooled_width).
        pooled_height: Rows of bins.
        pooled_width: Columns of bins.
        spatial_scale: Pixels of the map in one of the image.
        sampling_ratio: Samples along each axis of a bin; 0 for about one a pixel.
        aligned: As in `roi_align_forward`.
        clockwise: Angles turn clockwise as the image is seen; otherwise the other way.

    Raises:
        ValueError: Shapes don't fit together, or a region names an image that is not there.
    """
    _check(input, rois, 6)
    x = wide(input)
    output.zero_()
    bins = pooled_height, pooled_width
    for index, *places in _rotated_points(
        rois.to(x.dtype), bins, spatial_scale, sampling_ratio, aligned, clockwise, x.shape[1]
    ):
        output[index] = read_bins(x, *places).mean(-1).to(output.dtype)


def roi_align_rotated_backward(
    grad_output: Tensor,
    rois: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> None:
    """Write the gradient of the input; arguments as in `roi_align_rotated_forward`."""
    grad = wide(grad_output)
    maps = grad.new_zeros(grad_input.shape)
    grad_input.zero_()
    points = _rotated_points(rois.to(grad.dtype), (pooled_height, pooled_width), spatial_scale, sampling_ratio, aligned,
                             clockwise, grad.shape[1])  # fmt: skip
    for index, *places in points:

        def pool(source: Tensor, places: Sequence[Tensor] = places) -> Tensor:
            return read_bins(source, *places).mean(-1)

        grad_input += gradients(pool, [maps], grad[index])[0].to(grad_input.dtype)


def _rotated_points(
    rois: Tensor, bins: tuple[int, int], scale: float, ratio: int, aligned: bool, clockwise: bool, channels: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Regions (r,), their images, and rows and columns of their points."""
    centre = rois[:, 1:3] * scale - (0.5 if aligned else 0)
    size = rois[:, 3:5] * scale
    width, height = (size if aligned else size.clamp(min=1)).unbind(1)
    angle = rois[:, 5] if clockwise else -rois[:, 5]
    local = Regions(rois[:, 0].long(), -height / 2, -width / 2, height, width)
    for index, y, x in bin_points(local, bins, ratio, channels):
        cos, sin = (t[index].view(-1, 1, 1, 1, 1) for t in (angle.cos(), angle.sin()))
        across, down = (centre[index, i].view(-1, 1, 1, 1, 1) for i in (0, 1))
        yield index, local.image[index], x * sin + y * cos + down, x * cos - y * sin + across


def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Write the mean of bilinear samples in bins that offsets move; paper: arXiv 1703.06211.

    Args:
        input: (B, C, H, W).
        rois: (n, 5).
        offset: (n, 2, pooled_height, pooled_width), x then y, in sizes of the region; empty for none.
        output: (n, C, pooled_height, pooled_width).
        pooled_height: Rows of bins.
        pooled_width: Columns of bins.
        spatial_scale: Pixels of the map in one of the image.
        sampling_ratio: Samples along each axis of a bin; 0 for about one a pixel.
        gamma: Factor of the offsets.

    Raises:
        ValueError: Shapes don't fit together, or a region names an image that is not there.
    """
    _check(input, rois)
    _check_bins(rois, offset, (pooled_height, pooled_width))
    x = wide(input)
    regions = _regions(rois.to(x.dtype), spatial_scale, True)
    output.zero_()
    for points in bin_points(regions, (pooled_height, pooled_width), sampling_ratio, x.shape[1]):
        moves = offset[points.regions].to(x.dtype) if offset.numel() else None
        output[points.regions] = _moved_mean(regions, points, gamma, x, moves).to(output.dtype)


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Write the gradients of input and offset; arguments as in `deform_roi_pool_forward`."""
    x, grad = wide(input), wide(grad_output)
    regions = _regions(rois.to(x.dtype), spatial_scale, True)
    grad_input.zero_()
    grad_offset.zero_()
    for points in bin_points(regions, (pooled_height, pooled_width), sampling_ratio, x.shape[1]):
        moves = [offset[points.regions].to(x.dtype)] if offset.numel() else []

        def pool(*tensors: Tensor, points: Points = points) -> Tensor:
            return _moved_mean(regions, points, gamma, *tensors)

        grads = gradients(pool, [x, *moves], grad[points.regions])
        grad_input += grads[0].to(grad_input.dtype)
        if moves:
            grad_offset[points.regions] = grads[1].to(grad_offset.dtype)


def _moved_mean(regions: Regions, points: Points, gamma: float, maps: Tensor, moves: Tensor | None = None) -> Tensor:
    index, y, x = points
    if moves is not None:
        across, down = (moves * gamma)[..., None, None].unbind(1)
        y = y + down * regions.height[index].view(-1, 1, 1, 1, 1)
        x = x + across * regions.width[index].view(-1, 1, 1, 1, 1)
    return read_bins(maps, regions.image[index], y, x).mean(-1)


def _check_bins(rois: Tensor, offset: Tensor, bins: tuple[int, int]) -> None:
    if offset.numel() and offset.shape != (len(rois), 2, *bins):
        raise ValueError(f"offset has shape {tuple(offset.shape)}; it must be {(len(rois), 2, *bins)} or empty")


# --- Precise RoI pooling, arXiv 1807.11590 ----------------------------------------------------------------------------


def prroi_pool_forward(
    input: Tensor, rois: Tensor, output: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float
) -> None:
    """Write the mean over each bin of each region of the map as a continuous function, bilinear between its pixels.

    Args:
        input: (B, C, H, W); beyond its border it fades to zero over a pixel.
        rois: (n, 5).
        output: (n, C, pooled_height, pooled_width); zero where a bin has no area.
        pooled_height: Rows of bins.
        pooled_width: Columns of bins.
        spatial_scale: Pixels of the map in one of the image.

    Raises:
        ValueError: Shapes don't fit together, or a region names an image that is not there.
    """
    _check(input, rois)
    for part in _parts(rois, input, pooled_height, pooled_width):
        output[part] = _means(input, rois[part], (pooled_height, pooled_width), spatial_scale).to(output.dtype)


def prroi_pool_backward(
    grad_output: Tensor, rois: Tensor, grad_input: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float
) -> None:
    """Write the gradient of the input; arguments as in `prroi_pool_forward`."""
    grad_input.zero_()
    bins = pooled_height, pooled_width
    for part in _parts(rois, grad_input, *bins):
        some = rois[part]

        def pool(maps: Tensor, some: Tensor = some) -> Tensor:
            return _means(maps, some, bins, spatial_scale)

        grads = gradients(pool, [torch.zeros_like(grad_input)], grad_output[part].double())
        grad_input += grads[0]


def prroi_pool_coor_backward(
    output: Tensor,
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    grad_coor: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Write the gradient (n, 5) of the regions' corners; arguments as in `prroi_pool_forward`."""
    bins = pooled_height, pooled_width
    for part in _parts(rois, input, *bins):

        def pool(some: Tensor) -> Tensor:
            return _means(input, some, bins, spatial_scale)

        grad_coor[part] = gradients(pool, [rois[part]], grad_output[part].double())[0]


def _parts(rois: Tensor, maps: Tensor, rows: int, columns: int) -> Iterator[slice]:
    step = max(1, CHUNK // max(1, maps.shape[1] * (rows + 1) * (columns + 1)))
    return (slice(start, start + step) for start in range(0, len(rois), step))


def _means(maps: Tensor, rois: Tensor, bins: tuple[int, int], scale: float) -> Tensor:
    """Means (n, C, rows, columns), in float64: they are differences of sums over the whole map."""
    corners = rois[:, 1:].double() * scale
    size = (corners[:, 2:] - corners[:, :2]).clamp(min=0)
    borders = [
        corners[:, i, None] + size[:, i, None] * torch.linspace(0, 1, n + 1, dtype=size.dtype, device=size.device)
        for i, n in ((0, bins[1]), (1, bins[0]))
    ]
    sums = _integral(maps.double(), rois[:, 0].long(), borders[1], borders[0]).diff(dim=1).diff(dim=2).movedim(-1, 1)
    area = (size.prod(1) / (bins[0] * bins[1])).view(-1, 1, 1, 1)
    return torch.where(area > 0, sums / torch.where(area > 0, area, 1), 0)


def _integral(maps: Tensor, image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Integrals (n, Y, X, C) of bilinear maps above and left of each crossing of rows (n, Y) and columns (n, X).

    The integral of a sum of tents is a quadratic B-spline of the running sums of their heights.
    """
    height, width = maps.shape[-2:]
    sums = F.pad(maps, (1, 0, 1, 0)).cumsum(2).cumsum(3).permute(0, 2, 3, 1).flatten(0, 2)
    result = sums.new_zeros(())
    for row, weight_y in _spline(y, height):
        for column, weight_x in _spline(x, width):
            index = ((image[:, None] * (height + 1) + row)[:, :, None]) * (width + 1) + column[:, None]
            weight = weight_y[:, :, None] * weight_x[:, None]
            result = result + sums.index_select(0, index.flatten()).unflatten(0, index.shape) * weight[..., None]
    return result


def _spline(x: Tensor, length: int) -> list[tuple[Tensor, Tensor]]:
    """Entries of running sums (of `length` numbers) and their weights in a quadratic B-spline at `x`."""
    first = x.detach().floor()
    t = x - first
    weights = (1 - t) ** 2 / 2, 0.5 + t * (1 - t), t**2 / 2
    return [((first + i).clamp(0, length).long(), weight) for i, weight in enumerate(weights)]


# --- BorderAlign, arXiv 2007.11056 ------------------------------------------------------------------------------------


def border_align_forward(input: Tensor, boxes: Tensor, output: Tensor, argmax_idx: Tensor, pool_size: int) -> None:
    """Write the largest of bilinear samples along each border of each box.

    Args:
        input: (B, 4 * C, H, W): maps for the top, left, bottom and right borders.
        boxes: (B, n, 4), (x1, y1, x2, y2) in pixels of the map.
        output: (B, C, n, 4), top, left, bottom, right.
        argmax_idx: Which sample is the largest, as `output`, counted from the top or left end.
        pool_size: Steps between the samples of a border.

    Raises:
        ValueError: Shapes don't fit together.
    """
    if input.ndim != 4 or input.shape[1] % 4:
        raise ValueError(f"input has shape {tuple(input.shape)}; it must be (B, 4 * C, H, W)")
    if boxes.ndim != 3 or boxes.shape[::2] != (len(input), 4):
        raise ValueError(f"boxes has shape {tuple(boxes.shape)}; it must be ({len(input)}, n, 4)")
    maps = wide(input).unflatten(1, (4, -1)).flatten(0, 1)
    images = torch.arange(len(maps), device=maps.device)
    steps = torch.arange(pool_size + 1, device=boxes.device)
    size = max(1, CHUNK // max(1, input.shape[0] * input.shape[1] * (pool_size + 1)))
    for start in range(0, boxes.shape[1], size):
        part = boxes[:, start : start + size, None].to(maps.dtype)
        y, x = (t.permute(0, 3, 1, 2).flatten(0, 1).flatten(1) for t in _border_points(part, steps[:, None], pool_size))
        best, which = bilinear(maps, images, y, x).unflatten(1, (-1, pool_size + 1)).max(2)  # (B * 4, n, C)
        for buffer, values in ((output, best), (argmax_idx, which)):
            buffer[:, :, start : start + size] = values.unflatten(0, (-1, 4)).permute(0, 3, 2, 1).to(buffer.dtype)


def _border_points(boxes: Tensor, step: Tensor, pool_size: int) -> tuple[Tensor, Tensor]:
    """Rows and columns (..., 4) of the `step`-th samples (..., 4 or 1) on the borders of boxes (..., 4)."""
    begin, end = boxes[..., BEGIN], boxes[..., END]
    x, y = (begin + (end - begin) * (step / pool_size)[..., None]).unbind(-1)
    return y, x


def border_align_backward(
    grad_output: Tensor, boxes: Tensor, argmax_idx: Tensor, grad_input: Tensor, pool_size: int
) -> None:
    """Write the gradient of the input; arguments as in `border_align_forward`."""
    grad = wide(grad_output)
    y, x = _border_points(boxes.to(grad.dtype)[:, None], argmax_idx, pool_size)  # (B, C, n, 4)
    maps = torch.arange(grad_input.shape[0] * grad_input.shape[1], device=grad.device)
    places = (t.permute(0, 3, 1, 2).flatten(0, 2) for t in (y, x, grad))
    grad_input.copy_(_scatter(grad_input, maps, *places))
