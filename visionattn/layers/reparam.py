# SPDX-License-Identifier: Apache-2.0
"""Large depth-wise convolutions trained with dilated branches beside them, which merge into one for deployment."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .batch_norm import BatchNorm

# Side and dilation of the branches, by the side of the convolution.
BRANCHES: dict[int, tuple[tuple[int, int], ...]] = {
    5: ((3, 1), (3, 2)),
    7: ((5, 1), (3, 1), (3, 2), (3, 3)),
    9: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    17: ((5, 1), (7, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    19: ((5, 1), (7, 1), (9, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
}


class NormedConvolution(nn.Module):
    """Depth-wise convolution, dilated or not, and a batch norm.

    Args:
        dim: Channels of the map.
        kernel_size: Side of the kernel, odd.
        dilation: Pixels from tap to tap.
    """

    def __init__(self, dim: int, kernel_size: int, dilation: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel_size - 1) // 2
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=padding, dilation=dilation, groups=dim, bias=False)
        self.norm: nn.Module = BatchNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Convolves `(B, C, H, W)`."""
        return self.norm(self.conv(x))

    def merged(self, size: int) -> tuple[Tensor, Tensor]:
        """Kernel `(C, 1, size, size)` and bias `(C,)` of the one convolution that this is in evaluation."""
        norm = cast(BatchNorm, self.norm)
        factor = norm.weight / (cast(Tensor, norm.running_var) + norm.eps).sqrt()
        kernel = self.conv.weight * factor[:, None, None, None]
        dilation = self.conv.dilation[0]
        side = dilation * (kernel.shape[-1] - 1) + 1
        spread = kernel.new_zeros(*kernel.shape[:2], side, side)
        spread[:, :, ::dilation, ::dilation] = kernel
        return F.pad(spread, [(size - side) // 2] * 4), norm.bias - cast(Tensor, norm.running_mean) * factor


class DilatedReparam(NormedConvolution):
    """Large depth-wise convolution of `(B, C, H, W)` with smaller, dilated ones beside it, all normed and summed.

    Args:
        dim: Channels of the map.
        kernel_size: Side of the convolution, one of `BRANCHES`.
        fused: Whether there is the one convolution alone that the branches merge into.

    Raises:
        ValueError: If there are no branches for `kernel_size`.

    Paper: UniRepLKNet, arXiv 2311.15599.
    """

    def __init__(self, dim: int, kernel_size: int, fused: bool = False) -> None:
        if kernel_size not in BRANCHES:
            raise ValueError(f"kernel_size={kernel_size} must be one of {', '.join(map(str, BRANCHES))}")
        super().__init__(dim, kernel_size)
        branches = () if fused else BRANCHES[kernel_size]
        self.branches = nn.ModuleDict({f"k{k}_{r}": NormedConvolution(dim, k, r) for k, r in branches})
        if fused:
            self.norm = nn.Identity()
            self.conv.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Convolves `(B, C, H, W)`."""
        out = super().forward(x)
        for branch in self.branches.values():
            out = out + branch(x)
        return out

    @torch.no_grad()
    def fuse(self) -> None:
        """Merges the branches into one convolution, which is the same in evaluation; there is no way back."""
        if self.conv.bias is not None:
            return
        parts = [self, *(cast(NormedConvolution, branch) for branch in self.branches.values())]
        kernels, biases = zip(*(part.merged(self.conv.kernel_size[0]) for part in parts), strict=True)
        self.conv.weight.copy_(torch.stack(kernels).sum(0))
        self.conv.bias = nn.Parameter(torch.stack(biases).sum(0))
        self.norm, self.branches = nn.Identity(), nn.ModuleDict()


def fuse(model: nn.Module) -> nn.Module:
    """Merges the branches of every such convolution in a model, in place; returns the model."""
    for module in list(model.modules()):
        if isinstance(module, DilatedReparam):
            module.fuse()
    return model
