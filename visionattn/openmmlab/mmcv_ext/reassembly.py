# SPDX-License-Identifier: Apache-2.0
"""Pixels put together anew: CARAFE, convolution at chosen pixels, and PSANet's masks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.openmmlab.mmcv_ext.gradients import gradients, wide
from visionattn.openmmlab.mmcv_ext.sampling import CHUNK

# --- CARAFE, arXiv 1905.02188 -----------------------------------------------------------------------------------------


def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """Write an upsampled map, each pixel a weighted sum of its source's neighbourhood.

    Args:
        features: (B, C, H, W), zero beyond its border.
        masks: Weights (B, group_size * kernel_size², scale_factor * H, scale_factor * W).
        output: (B, C, scale_factor * H, scale_factor * W).
        kernel_size: Side of a neighbourhood, odd.
        group_size: Groups of channels with weights of their own.
        scale_factor: Pixels of the output along a pixel's side.

    Raises:
        ValueError: Shapes don't fit together.
    """
    _check_carafe(features, masks, kernel_size, group_size, scale_factor)
    around = F.pad(wide(features), (kernel_size // 2,) * 4)
    for seen, written in _bands(features, kernel_size, scale_factor):
        taps = wide(masks[:, :, written])
        output[:, :, written] = _reassemble(around[:, :, seen], taps, kernel_size, group_size).to(output.dtype)


def carafe_naive_backward(
    grad_output: Tensor,
    features: Tensor,
    masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the gradients of features and masks; arguments as in `carafe_naive_forward`."""
    half = kernel_size // 2
    around = F.pad(wide(features), (half,) * 4)
    grad_around = torch.zeros_like(around)

    def reassemble(around: Tensor, taps: Tensor) -> Tensor:
        return _reassemble(around, taps, kernel_size, group_size)

    for seen, written in _bands(features, kernel_size, scale_factor):
        inputs = around[:, :, seen], wide(masks[:, :, written])
        grads = gradients(reassemble, inputs, wide(grad_output[:, :, written]))
        grad_around[:, :, seen] += grads[0]
        grad_masks[:, :, written] = grads[1].to(grad_masks.dtype)
    grad_input.copy_(grad_around[:, :, half : half + features.shape[2], half : half + features.shape[3]])


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write what `carafe_naive_forward` does, and the features into `rfeatures`: the backward gets only those."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    grad_output: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rgrad_output: Tensor,
    rgrad_input_hs: Tensor,
    rgrad_input: Tensor,
    rgrad_masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the gradients of features and masks; `rfeatures` is what `carafe_forward` wrote."""
    carafe_naive_backward(grad_output, rfeatures, masks, grad_input, grad_masks, kernel_size, group_size, scale_factor)


def _bands(features: Tensor, kernel_size: int, scale: int) -> Iterator[tuple[slice, slice]]:
    """Rows of the padded features that a band of the output sees, and the band, for a bounded number of samples."""
    batch, channels, height, width = features.shape
    rows = max(1, CHUNK // max(1, batch * channels * width * kernel_size**2))
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        yield slice(start, stop + kernel_size - 1), slice(start * scale, stop * scale)


def _reassemble(around: Tensor, masks: Tensor, kernel_size: int, groups: int) -> Tensor:
    """Output (B, C, scale * h, scale * w) of padded features (B, C, h + kernel_size - 1, w + kernel_size - 1)."""
    height, width = (side - kernel_size + 1 for side in around.shape[-2:])
    scale = masks.shape[-1] // width
    seen = F.unfold(around, kernel_size).unflatten(1, (groups, -1, kernel_size**2))  # (B, G, C / G, taps, h * w)
    taps = masks.unflatten(1, (groups, -1)).unflatten(3, (height, scale)).unflatten(5, (width, scale))
    taps = taps.permute(0, 1, 3, 5, 2, 4, 6).flatten(5).flatten(2, 3)  # (B, G, h * w, taps, scale²)
    out = seen.permute(0, 1, 4, 2, 3) @ taps
    out = out.unflatten(4, (scale, scale)).unflatten(2, (height, width))  # (B, G, h, w, C / G, scale, scale)
    return out.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4).flatten(1, 2)


def _check_carafe(features: Tensor, masks: Tensor, kernel_size: int, groups: int, scale: int) -> None:
    batch, channels, height, width = features.shape
    if channels % groups:
        raise ValueError(f"group_size={groups} must divide the {channels} channels of features")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size={kernel_size} must be odd")
    expected = (batch, groups * kernel_size**2, height * scale, width * scale)
    if masks.shape != expected:
        raise ValueError(f"masks has shape {tuple(masks.shape)}; it must be {expected}")


# --- convolution at chosen pixels -------------------------------------------------------------------------------------


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Write what a kernel sees at chosen pixels.

    Args:
        im: (1, C, H, W), zero beyond its border.
        mask_h_idx: Rows of the pixels (n,).
        mask_w_idx: Their columns.
        col: Output (C * kernel_h * kernel_w, n).
        kernel_h: Height of the kernel.
        kernel_w: Width of the kernel.
        pad_h: Rows by which the kernel begins above the pixel.
        pad_w: Columns by which it begins left of it.
    """
    padded = F.pad(im[0], (pad_w, max(kernel_w - 1, pad_w), pad_h, max(kernel_h - 1, pad_h)))
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, rows, columns].flatten(0, 2))


def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """Write columns (C, n) to chosen pixels of `im` (1, C, H, W) and leave the others."""
    if im.shape[1:] != (channels, height, width):
        raise ValueError(f"im has shape {tuple(im.shape)}; it must be (1, {channels}, {height}, {width})")
    im[0, :, mask_h_idx, mask_w_idx] = col.to(im.dtype)


# --- PSANet, ECCV 2018 ------------------------------------------------------------------------------------------------


def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Write attention over a whole map that was predicted over a window around each pixel.

    Args:
        input: (B, h_mask * w_mask, H, W).
        output: (B, H * W, H, W), zero outside the windows. Collecting, entry (t, p) is what pixel p takes from t;
            distributing, what t gives to p.
        psa_type: 0 to collect, 1 to distribute.
        num_: B.
        h_feature: H.
        w_feature: W.
        h_mask: Height of the window.
        w_mask: Its width.
        half_h_mask: Rows of the window above the pixel.
        half_w_mask: Its columns left of the pixel.

    Raises:
        ValueError: Shapes don't fit together, or the type is unknown.
    """
    if input.shape != (num_, h_mask * w_mask, h_feature, w_feature):
        raise ValueError(f"input has shape {tuple(input.shape)}; it must be "
                         f"{(num_, h_mask * w_mask, h_feature, w_feature)}")  # fmt: skip
    output.copy_(_spread(input, psa_type, (h_mask, w_mask), (half_h_mask, half_w_mask)))


def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Write the gradient of the input; arguments as in `psamask_forward`."""

    def spread(x: Tensor) -> Tensor:
        return _spread(x, psa_type, (h_mask, w_mask), (half_h_mask, half_w_mask))

    grad_input.copy_(gradients(spread, [torch.zeros_like(grad_input)], grad_output)[0])


def _spread(x: Tensor, psa_type: int, window: tuple[int, int], half: tuple[int, int]) -> Tensor:
    if psa_type not in (0, 1):
        raise ValueError(f"psa_type={psa_type} must be 0 (collect) or 1 (distribute)")
    height, width = x.shape[-2:]
    x = x.unflatten(1, window)
    # Entry of the window at which pixel w sees pixel t of its row: (t, w).
    pixel = torch.arange(width, device=x.device)
    entry = pixel[:, None] - pixel + half[1]
    seen = (entry >= 0) & (entry < window[1])
    entry = entry.clamp(0, window[1] - 1)
    rows = []
    for h, around in enumerate(x.unbind(3)):  # (B, window, W)
        first = max(0, h - half[0])
        last = min(height, h - half[0] + window[0])
        part = around[:, first - h + half[0] : last - h + half[0]]  # (B, rows that h sees, width of the window, W)
        part = part.gather(2, entry.expand(*part.shape[:2], -1, -1)) * seen
        rows.append(F.pad(part, (0, 0, 0, 0, first, height - last)).flatten(1, 2))
    collected = torch.stack(rows, 2)  # (B, t, H, W)
    if psa_type == 1:
        collected = collected.flatten(2).transpose(1, 2).unflatten(2, (height, width))
    return collected
