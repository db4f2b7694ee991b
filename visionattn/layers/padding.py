# SPDX-License-Identifier: Apache-2.0
"""Padding of maps at the bottom and right, the one direction that every reference of the zoo pads in."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.kernels.pattern import is_symbolic


def pad_map(x: Tensor, bottom: int | torch.SymInt, right: int | torch.SymInt, channels_last: bool = True) -> Tensor:
    """Map with zero rows and columns appended.

    Args:
        x: `(B, H, W, C)`, or `(B, C, H, W)` where `channels_last` is false.
        bottom: Rows to append; may be symbolic under `torch.export`.
        right: Columns to append.
        channels_last: Layout of `x`.

    Returns:
        `x` itself where there is nothing to append, else a new tensor.
    """
    # A symbolic amount must not be compared: that would fix the exported graph to one side of the comparison.
    if isinstance(bottom, int) and isinstance(right, int) and bottom == 0 and right == 0:
        return x
    amounts: Any = (0, 0, 0, right, 0, bottom) if channels_last else (0, right, 0, bottom)
    return F.pad(x, amounts)


def pad_to_multiple(x: Tensor, multiple: int, channels_last: bool = True) -> Tensor:
    """Map whose height and width are padded up to a multiple of `multiple`."""
    height, width = x.shape[1:3] if channels_last else x.shape[2:4]
    return pad_map(x, -height % multiple, -width % multiple, channels_last)


def pad_to_size(x: Tensor, height: int, width: int, channels_last: bool = True) -> Tensor:
    """Map padded to at least `height` x `width`; a longer axis is left alone."""
    rows, columns = x.shape[1:3] if channels_last else x.shape[2:4]
    return pad_map(x, torch.sym_max(height - rows, 0), torch.sym_max(width - columns, 0), channels_last)


def pad_to_patch(x: Tensor, side: int, channels_last: bool = True) -> Tensor:
    """Map padded to at least one patch of `side` x `side`; symbolic sizes are taken to be that large."""
    # A trace needs maps of 2x2 patches anyway, and maxima in every size make it slow.
    return x if is_symbolic(*x.shape[1:]) else pad_to_size(x, side, side, channels_last)


def crop_to_size(x: Tensor, height: int, width: int) -> Tensor:
    """The upper left `height` x `width` part of a map `(B, H, W, ...)`."""
    if is_symbolic(height, width):  # a slice is contiguous or not, and a trace is tied to what its example was
        rows, columns = (torch.arange(size, device=x.device) for size in (height, width))
        return x.index_select(1, rows).index_select(2, columns)
    return x[:, :height, :width]
