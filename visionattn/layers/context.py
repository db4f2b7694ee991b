# SPDX-License-Identifier: Apache-2.0
"""Blocks of maps `(B, C, H, W)` with large convolutions, static or dynamic, and what joins their stages."""

import torch
from timm.layers import DropPath, LayerNorm2d, SqueezeExcite
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn

from .batch_norm import BatchNorm
from .contmix import ContMix
from .reparam import DilatedReparam


class ResidualDepthwise(nn.Conv2d):
    """`x + conv(x)` with a depth-wise 3x3 convolution.

    Args:
        dim: Channels of the map.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 3, padding=1, groups=dim)

    def forward(self, input: Tensor) -> Tensor:
        """Maps `(B, C, H, W)` to the same shape."""
        return input + super().forward(input)


class ChannelAffine(nn.Module):
    """A factor and a bias for each channel of `(B, C, H, W)`.

    Args:
        dim: Channels of the map.
        initial: Initial value of the factors.
    """

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim,), float(initial)))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Scales and shifts `(B, C, H, W)`."""
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class ResponseMlp(nn.Sequential):
    """MLP with a convolution and a global response norm between its layers.

    Args:
        dim: Channels of the map.
        hidden: Channels inside.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        norm = GlobalResponseNorm(hidden, channels_last=False)
        super().__init__(nn.Conv2d(dim, hidden, 1), nn.GELU(), ResidualDepthwise(hidden), norm,
                         nn.Conv2d(hidden, dim, 1))  # fmt: skip


class _ScaledSum(nn.Module):
    """`x + branch` with a scale on one of the two, and drop path on the branch."""

    def __init__(self, dim: int, layer_scale: float | None, scale_input: bool) -> None:
        super().__init__()
        self.scale_input = scale_input
        self.scale = nn.Identity() if layer_scale is None else ChannelAffine(dim, layer_scale)

    def forward(self, x: Tensor, branch: Tensor, drop_path: nn.Module) -> Tensor:
        if self.scale_input:
            return self.scale(x) + drop_path(branch)
        return x + drop_path(self.scale(branch))


class StaticBlock(nn.Module):
    """A large convolution with dilated branches, squeeze-and-excitation and an MLP in one branch.

    Args:
        dim: Channels of the map.
        kernel_size: Side of the convolution, one of `visionattn.layers.reparam.BRANCHES`.
        mlp_ratio: Hidden width of the MLP over `dim`.
        layer_scale: Initial value of per-channel factors; None for none.
        scale_input: Whether the factors are those of what the branch is added to, not of the branch.
        fused: Whether the convolution's branches are merged.
        drop_path: Probability that a sample skips the branch in training.

    Raises:
        ValueError: If there are no branches for `kernel_size`.

    Paper: OverLoCK, arXiv 2502.20087.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        scale_input: bool = True,
        fused: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.dwconv = ResidualDepthwise(dim)
        self.norm = LayerNorm2d(dim)
        self.conv = DilatedReparam(dim, kernel_size, fused)
        self.conv_norm = BatchNorm(dim)
        self.se = SqueezeExcite(dim, rd_channels=max(16, dim // 8), act_layer=nn.GELU)
        self.mlp = ResponseMlp(dim, int(dim * mlp_ratio))
        self.sum = _ScaledSum(dim, layer_scale, scale_input)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, C, H, W)` to the same shape."""
        x = self.dwconv(x)
        branch = self.mlp(self.se(self.conv_norm(self.conv(self.norm(x)))))
        return self.sum(x, branch, self.drop_path)


class ContextBlock(nn.Module):
    """Dynamic convolution whose kernels a context tells, and an MLP; the context is renewed on the way.

    Args:
        dim: Channels of the map without the context.
        context_dim: Channels of the context.
        num_heads: Kernels of each size that a pixel has.
        kernel_size: Side of the large kernels.
        small_kernel_size: Side of the small ones.
        mlp_ratio: Hidden width of the MLP over `dim`.
        layer_scale: Initial value of per-channel factors; None for none.
        scale_input: Whether the factors are those of what branches are added to, not of the branches.
        is_first: Whether the context that comes in is the one that the overview gave, not one that a block renewed.
        fused: Whether the static convolution's branches are merged.
        drop_path: Probability that a sample skips a branch in training.

    Raises:
        ValueError: If a kernel's side or `num_heads` does not fit.

    Paper: OverLoCK, arXiv 2502.20087.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int,
        num_heads: int,
        kernel_size: int = 7,
        small_kernel_size: int = 5,
        mlp_ratio: float = 3.0,
        layer_scale: float | None = None,
        scale_input: bool = True,
        is_first: bool = False,
        fused: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        width = dim + context_dim
        self.split, self.is_first = (dim, context_dim), is_first
        if not is_first:
            self.renewed_scale = ChannelAffine(context_dim, 1.0)
            self.given_scale = ChannelAffine(context_dim, 1.0)
        self.dwconv1 = ResidualDepthwise(width)
        self.norm1 = LayerNorm2d(width)
        self.attn = ContMix(width, num_heads, kernel_size, small_kernel_size, context_dim, fused=fused)
        self.sum1 = _ScaledSum(width, layer_scale, scale_input)
        self.dwconv2 = ResidualDepthwise(width)
        self.norm2 = LayerNorm2d(width)
        self.mlp = ResponseMlp(width, int(dim * mlp_ratio))
        self.sum2 = _ScaledSum(width, layer_scale, scale_input)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        """Maps `(B, dim + context_dim, H, W)` to the same shape; `given` is the overview's context."""
        if not self.is_first:
            x, renewed = x.split(self.split, 1)
            x = torch.cat([x, self.renewed_scale(renewed) + self.given_scale(given)], 1)
        x = self.dwconv1(x)
        branch = self.attn(self.norm1(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.dwconv2(self.sum1(x, branch, self.drop_path))
        return self.sum2(x, self.mlp(self.norm2(x)), self.drop_path)


class NormedDownsample(nn.Sequential):
    """3x3 convolution of stride 2 and a batch norm, of maps `(B, C, H, W)`; odd sides round up.

    Args:
        dim: Channels of the map.
        out_dim: Channels of the result.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__(nn.Conv2d(dim, out_dim, 3, stride=2, padding=1, bias=False), BatchNorm(out_dim))


class ContextDownsample(nn.Module):
    """Downsamples a map and its context, which lie side by side, each by its own convolution.

    Args:
        dim: Channels of the map without the context.
        out_dim: Channels of the result without it.
        context_dim: Channels of the context.
    """

    def __init__(self, dim: int, out_dim: int, context_dim: int) -> None:
        super().__init__()
        self.split = (dim, context_dim)
        self.map = NormedDownsample(dim, out_dim)
        self.context = NormedDownsample(context_dim, context_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, dim + context_dim, H, W)` to `(B, out_dim + context_dim, H / 2, W / 2)`."""
        x, context = x.split(self.split, 1)
        return torch.cat([self.map(x), self.context(context)], 1)
