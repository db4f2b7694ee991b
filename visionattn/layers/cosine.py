# SPDX-License-Identifier: Apache-2.0
"""Attention by the cosine of queries and keys, with a position bias that a small network computes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import WindowAttention

MAX_LOG_SCALE = 4.605170249938965  # log(100) as float32 has it: in float64 too, the reference clamps there
HIDDEN = 512


class CosineWindowAttention(WindowAttention):
    """Window attention whose logits are cosines times a learned factor per head, at most 100.

    The bias of a pair of pixels is 16 times the sigmoid of an MLP of its log-spaced offset, so that windows can grow
    after training: no table has to be resized. Keys have no bias of their own.

    Args:
        dim: Channels of the map.
        num_heads: Attention heads.
        window_size: Side or `(height, width)` of a window.
        shift: Pixels that the grid is shifted by.
        shift_small_maps: Shift even a map that one window covers along an axis.
        pretrained_window: Side of the windows that the MLP was trained with, which offsets are measured by; 0 for
            those of this layer.
        qkv_bias: Whether queries and values have a bias.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If `pretrained_window` is negative, or sizes do not fit as `WindowAttention` says.

    Paper: Swin Transformer V2, arXiv 2111.09883.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int | tuple[int, int] = 8,
        shift: int = 0,
        shift_small_maps: bool = False,
        pretrained_window: int = 0,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(
            dim, num_heads, window_size, shift, shift_small_maps, False, 1.0, proj_drop, relative_bias=False
        )
        if pretrained_window < 0:
            raise ValueError(f"pretrained_window={pretrained_window} must be positive, or 0 for the window size")
        self.pretrained_window = pretrained_window
        self.logit_scale = nn.Parameter(torch.full((num_heads,), 10.0).log())
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.cpb_mlp = nn.Sequential(nn.Linear(2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, num_heads, bias=False))

    def no_weight_decay(self) -> set[str]:
        """Parameters that no recipe decays, besides vectors: the network of the position bias."""
        return {"cpb_mlp.0.weight", "cpb_mlp.2.weight"}

    def project_in(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys of unit length, queries times their head's factor, and values: `(B, H, W, heads, D)`."""
        bias = None
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = qkv.view(*x.shape[:3], 3, self.num_heads, -1).unbind(3)
        factor = self.logit_scale.clamp(max=MAX_LOG_SCALE).exp()[:, None]
        return (F.normalize(q, dim=-1) * factor).to(v.dtype), F.normalize(k, dim=-1).to(v.dtype), v

    def position_bias(self) -> Tensor:
        """Table `(heads, 2*height-1, 2*width-1)` added to the logits, by key position minus query position."""
        offsets = [self._log_offsets(side) for side in self.window_size]
        grid = torch.stack(torch.meshgrid(*offsets, indexing="ij"), -1).to(self.cpb_mlp[0].weight.dtype)
        return 16 * torch.sigmoid(self.cpb_mlp(grid)).permute(2, 0, 1)

    def _log_offsets(self, side: int) -> Tensor:
        """Query minus key along one axis for key minus query from 1 - side on, on a logarithmic scale.

        In float32 whatever the weights are, as the reference has it.
        """
        offsets = torch.arange(side - 1, -side, -1, dtype=torch.float32, device=self.logit_scale.device)
        scaled = offsets / max((self.pretrained_window or side) - 1, 1) * 8
        return scaled.sign() * torch.log2(scaled.abs() + 1) / 3

    def padding(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """Key and value `(heads, D)` of the tokens that fill up the last windows; None for zeros."""
        return None, None if self.v_bias is None else self.v_bias.to(dtype).view(self.num_heads, -1)
