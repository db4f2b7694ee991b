# SPDX-License-Identifier: Apache-2.0
"""Vision Mamba's token mixer: selective scans of the sequence of pixels, there and back."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.kernels import selective_scan


class ScanBranch(nn.Module):
    """Causal convolution and selective scan of a sequence in one direction.

    Args:
        dim: Channels of the sequence.
        d_state: Numbers in the state of a channel.
        d_conv: Tokens that the convolution sees.
        dt_rank: Rank of the steps' projection.
        reverse: Whether the sequence runs from its end to its start.
    """

    def __init__(self, dim: int, d_state: int, d_conv: int, dt_rank: int, reverse: bool) -> None:
        super().__init__()
        self.reverse = reverse
        self.split = (dt_rank, d_state, d_state)
        self.conv = nn.Conv1d(dim, dim, d_conv, groups=dim)
        self.x_proj = nn.Linear(dim, sum(self.split), bias=False)
        # No linear layer: hosts give those initial values that steps must not have.
        self.dt_weight = nn.Parameter(torch.empty(dim, dt_rank))
        self.dt_bias = nn.Parameter(torch.empty(dim))
        self.A_log = nn.Parameter(torch.empty(dim, d_state))
        self.D = nn.Parameter(torch.ones(dim))
        self.init_weights()

    def init_weights(self) -> None:
        """Rates 1 to N in every channel; steps of 0.001 to 0.1, or of `softplus(0)` in the reversed sequence."""
        bound = self.split[0] ** -0.5
        nn.init.uniform_(self.dt_weight, -bound, bound)
        with torch.no_grad():
            rates = torch.arange(1, self.split[1] + 1, device=self.A_log.device)
            self.A_log.copy_(rates.log().expand_as(self.A_log))
            # As the authors trained: their steps of the second direction start without the care of the first.
            step = torch.empty_like(self.dt_bias).uniform_(math.log(1e-3), math.log(1e-1)).exp().clamp(min=1e-4)
            self.dt_bias.copy_(torch.zeros_like(step) if self.reverse else step.expm1().log())

    def no_weight_decay(self) -> set[str]:
        """Parameters that no recipe decays."""
        return {"A_log"}

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """Scans `(B, L, C)`; `gate` of the same shape gates what comes out."""
        reach, weight = self.conv.kernel_size[0] - 1, self.conv.weight
        x = x.transpose(1, 2)
        if self.reverse:  # causal in the reversed sequence: sees what follows
            x, weight = F.pad(x, (0, reach)), weight.flip(-1)
        else:
            x = F.pad(x, (reach, 0))
        x = F.silu(F.conv1d(x, weight, self.conv.bias, groups=weight.shape[0])).transpose(1, 2)
        steps, inputs, outputs = self.x_proj(x).split(self.split, -1)
        out = selective_scan(
            x,
            F.linear(steps, self.dt_weight),
            -self.A_log.exp(),
            inputs,
            outputs,
            D=self.D,
            z=gate,
            delta_bias=self.dt_bias,
            delta_softplus=True,
            reverse=self.reverse,
        )
        assert isinstance(out, Tensor)
        return out


class SelectiveScan(nn.Module):
    """State space model over the pixels, row by row, in both directions.

    It is mixer and MLP in one: its blocks need no MLP.

    Args:
        dim: Channels of the map.
        num_heads: Not used; there, since all mixers take it.
        d_state: Numbers in the state of a channel.
        d_conv: Tokens that the convolution before a scan sees.
        expansion_ratio: Channels of the scans over `dim`, a whole number of them.
        dt_rank: Rank of the steps' projection; None for a sixteenth of `dim`.
        average: Whether the two directions are averaged, not added.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If `d_state`, `d_conv`, `dt_rank` or the channels of the scans are not positive.

    Paper: Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model,
    arXiv 2401.09417.
    """

    cost = "O(N)"

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        d_state: int = 16,
        d_conv: int = 4,
        expansion_ratio: float = 2.0,
        dt_rank: int | None = None,
        average: bool = True,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = int(expansion_ratio * dim)
        rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        for name, value in (("d_state", d_state), ("d_conv", d_conv), ("dt_rank", rank)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if hidden < 1:
            raise ValueError(f"expansion_ratio={expansion_ratio} leaves none of dim={dim} channels")
        self.average = average
        self.in_proj = nn.Linear(dim, 2 * hidden, bias=False)
        self.scans = nn.ModuleList(ScanBranch(hidden, d_state, d_conv, rank, back) for back in (False, True))
        self.out_proj = nn.Linear(hidden, dim, bias=False)
        self.proj_drop = nn.Dropout(proj_drop)

    def init_linear_layers(self, depth: int) -> None:
        """Gives linear layers PyTorch's initial values, the last one's smaller with the `depth` of the network."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        with torch.no_grad():
            self.out_proj.weight.div_(math.sqrt(depth))

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Mixes a map `(B, H, W, C)`, any H, W >= 1, or tokens `(B, N, C)`, whose map's size changes nothing."""
        tokens, gate = self.in_proj(x.flatten(1, -2)).chunk(2, -1)
        there, back = (scan(tokens, gate) for scan in self.scans)
        out = there + back
        out = self.out_proj(out / 2 if self.average else out)
        return self.proj_drop(out.unflatten(1, x.shape[1:-1]))
