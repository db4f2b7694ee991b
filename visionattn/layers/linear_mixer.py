# SPDX-License-Identifier: Apache-2.0
"""What the mixers of linear cost share: projections of a map, or of tokens that a class token leads."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.kernels.pattern import is_symbolic

from .checks import check_heads
from .padding import pad_to_patch


class LinearMixer(nn.Module):
    """Projections of a mixer, and depth-wise convolutions of its values.

    Args:
        dim: Channels of the map; a multiple of `num_heads`.
        num_heads: Attention heads.
        reduction: None projects queries, keys and values by one packed layer. A number projects queries by themselves,
            and keys and values from patches of that side summarised by a convolution; 1 means the pixels themselves.
        qkv_bias: Whether these projections have a bias.
        qk_scale: Factor on products of queries and keys; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.
        class_token: Whether the mixer takes tokens `(B, 1 + H * W, C)`, the class token first, and the size of the map
            instead of a map.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, or `reduction` is not positive or has no map to reduce.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        reduction: int | None = None,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        class_token: bool = False,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        if reduction is not None and (reduction < 1 or class_token):
            raise ValueError(f"reduction={reduction} must be at least 1, and None beside a class token")
        self.dim, self.num_heads, self.reduction, self.class_token = dim, num_heads, reduction, class_token
        self.scale = (dim // num_heads) ** -0.5 if qk_scale is None else qk_scale
        if reduction is None:
            self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        else:
            self.q, self.kv = nn.Linear(dim, dim, bias=qkv_bias), nn.Linear(dim, 2 * dim, bias=qkv_bias)
            self.sr = nn.Conv2d(dim, dim, reduction, stride=reduction) if reduction > 1 else nn.Identity()
            self.norm = nn.LayerNorm(dim) if reduction > 1 else nn.Identity()
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def project_in(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries `(B, H, W, heads, D)`, keys and values `(B, h, w, heads, D)` of a map; of tokens likewise."""
        if self.reduction is None:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        else:
            q = self.q(x).unflatten(-1, (self.num_heads, -1))
            k, v = self.kv(self._reduced(x)).unflatten(-1, (2, self.num_heads, -1)).unbind(-3)
        return packed(q, k, v)

    def _reduced(self, x: Tensor) -> Tensor:
        if self.reduction is None or self.reduction == 1:
            return x
        return self.norm(self.sr(pad_to_patch(x, self.reduction).permute(0, 3, 1, 2)).permute(0, 2, 3, 1))

    def project_out(self, x: Tensor) -> Tensor:
        """Joins the heads of `(B, ..., heads, D)` and projects them."""
        return self.proj_drop(self.proj(x.flatten(-2)))

    def key_size(self, height: int, width: int) -> tuple[int, int]:
        """Map of keys and values of a map."""
        side = self.reduction or 1
        return (height, width) if side == 1 else (max(height // side, 1), max(width // side, 1))


def packed(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors without gaps between their axes where sizes are symbolic."""
    # Merging axes of other strides would tie a trace to a batch of more than one image.
    return tuple(t.contiguous() if is_symbolic(*t.shape) else t for t in tensors)


def depthwise(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Convolution of a map `(B, H, W, heads, D)` by one kernel a channel, or by `D` kernels that the heads share."""
    shares = x.shape[3] * x.shape[4] // conv.out_channels
    weight, bias = conv.weight.repeat(shares, 1, 1, 1), None if conv.bias is None else conv.bias.repeat(shares)
    padding = conv.kernel_size[0] // 2
    out = F.conv2d(x.flatten(3).permute(0, 3, 1, 2), weight, bias, padding=padding, groups=weight.shape[0])
    return out.permute(0, 2, 3, 1).unflatten(3, x.shape[3:])


def split_class(x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Class token `(B, 1, ...)` and map `(B, H, W, ...)` of tokens `(B, 1 + H * W, ...)`."""
    pixels = x[:, 1:]
    if is_symbolic(*size):  # a slice is contiguous or not, and a trace is tied to what its example was
        pixels = x.index_select(1, torch.arange(size[0] * size[1], device=x.device) + 1)
    return x[:, :1], pixels.unflatten(1, size)


def join_class(token: Tensor, x: Tensor) -> Tensor:
    """Tokens `(B, 1 + H * W, ...)` of a class token and a map."""
    return torch.cat([token, x.flatten(1, 2)], 1)
