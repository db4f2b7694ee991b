# SPDX-License-Identifier: Apache-2.0
"""Partial convolution: some channels are convolved, the others kept, gated, or mixed by attention."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.kernels.pattern import is_symbolic

from .batch_norm import BatchNorm
from .checks import check_odd
from .distance import DistanceAttention
from .norm import MapBatchNorm
from .tokens import at_least_float32


class PartialConvolution(nn.Module):
    """A dense convolution of the first of `divisor` parts of the channels; the others stay as they are.

    Args:
        dim: Channels of the map.
        num_heads: Not used; there, since all mixers take it.
        divisor: Parts of the channels, at least 2 and at most `dim`.
        kernel_size: Side of the convolution, odd.
        bias: Whether the convolution has a bias.
        proj_drop: Dropout of the result.

    Raises:
        ValueError: If `divisor` or `kernel_size` is out of range.

    Paper: Run, Don't Walk: Chasing Higher FLOPS for Faster Neural Networks, arXiv 2303.03667.
    """

    cost = "O(N)"

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        divisor: int = 4,
        kernel_size: int = 3,
        bias: bool = False,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if not 2 <= divisor <= dim:
            raise ValueError(f"divisor={divisor} must be at least 2 and at most dim={dim}")
        check_odd("kernel_size", kernel_size)
        convolved = dim // divisor
        self.split = (convolved, dim - convolved)
        self.conv = nn.Conv2d(convolved, convolved, kernel_size, padding=kernel_size // 2, bias=bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        convolved, rest = x.split(self.split, -1)
        convolved = self.conv(convolved.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.proj_drop(torch.cat([convolved, self.mix_rest(rest)], -1))

    def mix_rest(self, rest: Tensor) -> Tensor:
        """What becomes of the channels `(B, H, W, C')` that are not convolved."""
        return rest


class StatisticsGate(nn.Module):
    """Weighs every channel by what mean and standard deviation of all channels say.

    Args:
        dim: Channels of the map.

    Paper: Partial Channel Network, arXiv 2502.01303; SRM: A Style-based Recalibration Module, arXiv 1903.10829.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * dim, dim, bias=False)  # reads mean and deviation of each channel side by side
        self.bn = BatchNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Weighs `(B, H, W, C)`."""
        height, width = x.shape[1:3]
        wide = at_least_float32(x)  # sums over the map overflow half precision
        # A single pixel does not deviate; a trace is of larger maps anyway.
        correction = 1 if is_symbolic(height, width) else min(1, height * width - 1)
        statistics = torch.stack([wide.mean((1, 2)), wide.std((1, 2), correction=correction)], -1)
        logits = self.bn(self.fc(statistics.flatten(1).to(x.dtype))[..., None, None])[..., 0, 0]
        return x * F.hardsigmoid(logits)[:, None, None]


class PartialChannelAttention(PartialConvolution):
    """A dense convolution of some channels; the others are weighed by a gate of their statistics and normed.

    Args:
        dim: Channels of the map.
        num_heads: Not used; there, since all mixers take it.
        divisor: Parts of the channels, at least 2 and at most `dim`; one is convolved.
        kernel_size: Side of the convolution, odd.
        bias: Whether the convolution has a bias.
        proj_drop: Dropout of the result.

    Raises:
        ValueError: If `divisor` or `kernel_size` is out of range.

    Paper: Partial Channel Network: Compute Fewer, Perform Better, arXiv 2502.01303.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        divisor: int = 4,
        kernel_size: int = 3,
        bias: bool = False,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, divisor, kernel_size, bias, proj_drop)
        self.gate = StatisticsGate(self.split[1])
        self.norm = BatchNorm(self.split[1])

    def mix_rest(self, rest: Tensor) -> Tensor:
        """Weighs and norms."""
        return self.norm(self.gate(rest).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class PartialSelfAttention(PartialConvolution):
    """A dense convolution of some channels; in the others, normed, every pixel attends to every pixel.

    Args:
        dim: Channels of the map.
        num_heads: Attention heads; they must divide the channels that are not convolved.
        divisor: Parts of the channels, at least 2 and at most `dim`; one is convolved.
        kernel_size: Side of the convolution, odd.
        bias: Whether the convolution has a bias.
        proj_drop: Dropout after the attention's output projection.
        attn_drop: Dropout of the attention weights.

    Raises:
        ValueError: If an argument is out of range.

    Paper: Partial Channel Network: Compute Fewer, Perform Better, arXiv 2502.01303.
    """

    cost = "O(N²)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        divisor: int = 4,
        kernel_size: int = 3,
        bias: bool = False,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, divisor, kernel_size, bias)
        self.norm = nn.LayerNorm(self.split[1], 1e-6)
        self.attention = DistanceAttention(self.split[1], num_heads, proj_drop=proj_drop, attn_drop=attn_drop)

    def mix_rest(self, rest: Tensor) -> Tensor:
        """Norms and attends."""
        return self.attention(self.norm(rest))


class DynamicPartialConvolution(nn.Module):
    """A dense convolution of so many of the first channels as training chose; the others stay as they are.

    In training all channels are convolved, in groups whose number gates decide: the mask of the weights is a Kronecker
    product of a 2x2 matrix for each gate, all ones where the gate is above 0, the identity elsewhere. Each identity
    halves the channels that are convolved afterwards, in evaluation, by the first group's weights. Training and
    evaluation compute different things, as in the reference, so this is no mixer for any host.

    Args:
        dim: Channels of the map, a power of 2 and at least 4.
        kernel_size: Side of the convolution, odd.
        proj_drop: Dropout of the result.

    Raises:
        ValueError: If `dim` is no power of 2, or `kernel_size` is even.

    Paper: Partial Channel Network: Compute Fewer, Perform Better, arXiv 2502.01303.
    """

    def __init__(self, dim: int, kernel_size: int = 3, proj_drop: float = 0.0) -> None:
        super().__init__()
        if dim < 4 or dim & (dim - 1):
            raise ValueError(f"dim={dim} must be a power of 2, at least 4")
        check_odd("kernel_size", kernel_size)
        self.gate = nn.Parameter(torch.full((dim.bit_length() - 1,), 0.5))
        with torch.no_grad():
            self.gate[:2] = -0.5  # a quarter
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, bias=False)
        self.register_buffer("convolved", torch.tensor(dim // 4, dtype=torch.int32))
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        planes = x.permute(0, 3, 1, 2)
        if self.training:
            return self.proj_drop(self._convolve(planes, self.grouping()[:, :, None, None]))
        # By a mask, since traces know no widths that depend on data.
        inside = torch.arange(x.shape[-1], device=x.device) < self.convolved
        corner = (inside[:, None] & inside)[:, :, None, None].to(x.dtype)
        return torch.where(inside, self._convolve(planes, corner), x)

    def _convolve(self, planes: Tensor, mask: Tensor) -> Tensor:
        weight = self.conv.weight * mask.to(self.conv.weight.dtype)
        return F.conv2d(planes, weight, padding=self.conv.padding).permute(0, 2, 3, 1)  # type: ignore[arg-type]

    def grouping(self) -> Tensor:
        """Mask `(C, C)` of the weights as the gates have it, whose gradients reach gates between -1 and 1."""
        chosen = (self.gate > 0).to(self.gate.dtype)
        slope = self.gate.clamp(-1, 1) / 2
        chosen = chosen + slope - slope.detach()
        with torch.no_grad():
            self.convolved.copy_(2 ** (self.gate > 0).sum())
        identity, mask = torch.eye(2).to(chosen), torch.ones(1, 1).to(chosen)
        for share in chosen.unbind():
            mask = torch.kron(mask, share + (1 - share) * identity)
        return mask


class PartialSpatialGate(nn.Module):
    """Weighs the pixels of the first half of the channels, and mixes the channels of the second.

    Args:
        dim: Channels of the map.

    Paper: Partial Channel Network: Compute Fewer, Perform Better, arXiv 2502.01303.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.split = (dim - dim // 2, dim // 2)
        self.gate = nn.Linear(self.split[0], 1, bias=False)
        self.norm1 = MapBatchNorm(self.split[0])
        self.norm2 = MapBatchNorm(self.split[1])
        self.fc = nn.Linear(self.split[1], self.split[1], bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, H, W, C)` to the same shape."""
        weighed, mixed = x.split(self.split, -1)
        weighed = self.norm1(weighed * F.hardsigmoid(self.gate(weighed)))
        return torch.cat([weighed, self.fc(self.norm2(mixed))], -1)


class PartialMlp(nn.Module):
    """MLP without biases, normed or gated: the layers of FasterNet, and those that PartialNet adds.

    Args:
        dim: Channels of the map.
        hidden: Channels inside.
        drop: Dropout after the activation and at the end.
        act: Activation, "gelu" or "relu".
        norm: Whether a batch norm precedes the activation.
        spatial_gate: Whether a `PartialSpatialGate` follows.

    Paper: Partial Channel Network: Compute Fewer, Perform Better, arXiv 2502.01303.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        drop: float = 0.0,
        act: str = "gelu",
        norm: bool = True,
        spatial_gate: bool = False,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, bias=False)
        self.norm = MapBatchNorm(hidden) if norm else nn.Identity()
        self.act = nn.ReLU() if act == "relu" else nn.GELU()
        self.drop = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden, dim, bias=False)
        self.gate = PartialSpatialGate(dim) if spatial_gate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, H, W, C)` to the same shape."""
        x = self.fc2(self.drop(self.act(self.norm(self.fc1(x)))))
        return self.drop(self.gate(x))
