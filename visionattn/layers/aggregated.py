# SPDX-License-Identifier: Apache-2.0
"""Cosine attention with computed position biases: as an eye, sharp at each pixel and coarse elsewhere; or global."""

import math

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor, nn

from visionattn.kernels import aggregated_attention
from visionattn.kernels.aggregated_torch import positions_inside
from visionattn.kernels.pattern import ceil_div, is_symbolic

from .attention import resize_table
from .checks import check_heads, check_odd
from .init import init_table
from .pooling import average_cells

HIDDEN = 512
Size = int | tuple[int, int]


class ExtrapolatingAttention(nn.Module):
    """What the attention layers of TransNeXt share: cosines, learned and length-aware scales, computed positions.

    Logits are `<(q + embedding) * scale, k>` of unit queries and keys; the scale is a learned factor per head times the
    logarithm of the number of keys. An MLP of log-spaced offsets gives the position bias.

    Args:
        dim: Channels of the map; a multiple of `num_heads`.
        num_heads: Attention heads.
        pretrained_size: Side or `(height, width)` of the map that the MLP was trained with, by which offsets are
            measured.
        map_size: Map that the bias is computed for and resized bilinearly from; None computes it for every map.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, or a size is not positive.
    """

    def __init__(
        self, dim: int, num_heads: int, pretrained_size: Size, map_size: Size | None, proj_drop: float
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        for name, size in (("pretrained_size", pretrained_size), ("map_size", map_size)):
            if size is not None and min(to_2tuple(size)) < 1:
                raise ValueError(f"{name}={size} must be positive")
        self.dim = dim
        self.num_heads = num_heads
        self.pretrained_size: tuple[int, int] = to_2tuple(pretrained_size)
        self.map_size: tuple[int, int] | None = None if map_size is None else to_2tuple(map_size)
        # Softplus of it is 1 / 0.24.
        self.temperature = nn.Parameter(torch.full((num_heads,), math.log(math.expm1(1 / 0.24))))
        self.query_embed = nn.Parameter(torch.empty(dim))
        init_table(self.query_embed)
        self.cpb_mlp = nn.Sequential(nn.Linear(2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, num_heads))
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def no_weight_decay(self) -> set[str]:
        """Parameters that no recipe decays, besides vectors: the network of the position bias."""
        return {"cpb_mlp.0.weight", "cpb_mlp.2.weight"}

    def key_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the keys that a map's pixels see by position."""
        return height, width

    def project_out(self, x: Tensor) -> Tensor:
        """Joins the heads of `(B, H, W, heads, D)` and projects them."""
        return self.proj_drop(self.proj(x.flatten(3)))

    def scaled(self, q: Tensor, length: Tensor | float) -> Tensor:
        """Unit queries with the learned embedding, times all scales; `length` is the logarithm of the keys' number."""
        factor = F.softplus(self.temperature)[:, None] * length
        return ((q + self.query_embed.view(self.num_heads, -1)) * factor).to(q.dtype)

    def position_bias(self, height: int, width: int) -> Tensor:
        """Bias `(heads, H, W, n)` of a map's pixels and the pixels that they see by position, row by row."""
        if self.map_size is None:
            return self._computed(height, width).flatten(3)
        rows, columns = self.map_size
        keys = self.key_size(height, width)
        bias = resize_table(self._computed(rows, columns).flatten(1, 2), keys, "bilinear").flatten(2)
        bias = resize_table(bias.transpose(1, 2).unflatten(2, (rows, columns)), (height, width), "bilinear")
        return bias.permute(0, 2, 3, 1)

    def _computed(self, height: int, width: int) -> Tensor:
        """Bias `(heads, H, W, rows, columns)` by the MLP, which is asked once for each distinct offset."""
        sides = zip((height, width), self.key_size(height, width), self.pretrained_size, strict=True)
        (y, row), (x, column) = (self._offsets(*side) for side in sides)
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).to(self.temperature.dtype)
        table = self.cpb_mlp(grid).permute(2, 0, 1)
        return table[:, row[:, None, :, None], column[None, :, None, :]]

    def _offsets(self, queries: int, keys: int, pretrained: int) -> tuple[Tensor, Tensor]:
        """Distinct offsets of an axis, log-spaced, and which of them each query and key have, `(queries, keys)`.

        In float32 whatever the weights are, as the reference has it.
        """
        device = self.temperature.device
        query, key = (torch.arange(side, device=device) for side in (queries, keys))
        # Twice the centre of what a key averages, which is a whole number.
        centre = key * queries // keys - (-(key + 1) * queries // keys) - 1
        doubled = _doubled_offsets(queries, keys)
        scaled = torch.arange(*doubled, device=device).float() / 2 / max(pretrained - 1, 1) * 8
        index = (2 * query[:, None] - centre - doubled[0]) // doubled[2]
        return scaled.sign() * torch.log2(scaled.abs() + 1) / 3, index

    def bias_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of the MLP for the position bias of a map."""
        sides = self.map_size or (height, width)
        rows, columns = (
            len(range(*_doubled_offsets(*pair))) for pair in zip(sides, self.key_size(*sides), strict=True)
        )
        return rows * columns * HIDDEN * (2 + self.num_heads)


def _doubled_offsets(queries: int, keys: int) -> tuple[int, int, int]:
    """Range that holds twice each offset of an axis of pixels from the cells that its keys average."""
    if is_symbolic(queries, keys):  # more than all, in a size that a tracer reasons about at once
        return -2 * queries, 2 * queries, 1
    # Cells of one size are whole pixels apart; others overlap, and their centres may be half pixels apart.
    step = 2 if queries % keys == 0 else 1
    return 1 - queries - (keys - 1) * queries // keys, 2 * queries - ceil_div(queries, keys), step


class AggregatedAttention(ExtrapolatingAttention):
    """Every pixel attends, in one softmax, to the window around it and to averages of the whole map.

    Afterwards the weights of the window get products of the query with learned tokens added. A map smaller than a cell
    of the averages has one cell; graphs traced with symbolic sizes need maps of at least one cell.

    Args:
        dim: Channels of the map; a multiple of `num_heads`.
        num_heads: Attention heads.
        window_size: Side of the window, odd.
        reduction: Side of the cells that are averaged.
        pool_size: Rows and columns of averages; None for as many as `reduction` gives.
        pretrained_size: Side or `(height, width)` of the map that the position bias was trained with, by which offsets
            are measured.
        map_size: Map that the position bias is computed for and resized bilinearly from; None computes it for every
            map.
        qkv_bias: Whether the q and kv projections have a bias.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, the window is even, or a size is not positive.

    Paper: TransNeXt: Robust Foveal Visual Perception for Vision Transformers, arXiv 2311.17132.
    """

    cost = "O(N²)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 3,
        reduction: int = 4,
        pool_size: int | None = None,
        pretrained_size: Size = 28,
        map_size: Size | None = None,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, pretrained_size, map_size, proj_drop)
        check_odd("window_size", window_size)
        if reduction < 1:
            raise ValueError(f"reduction={reduction} must be at least 1")
        if pool_size is not None and pool_size < 1:
            raise ValueError(f"pool_size={pool_size} must be at least 1, or None")
        self.window_size, self.reduction, self.pool_size = window_size, reduction, pool_size
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.sr = nn.Conv2d(dim, dim, 1)
        self.norm = nn.LayerNorm(dim)
        positions = window_size**2
        self.rpb = nn.Parameter(torch.empty(num_heads, positions))
        self.tokens = nn.Parameter(torch.empty(num_heads, dim // num_heads, positions))
        self.token_bias = nn.Parameter(torch.zeros(num_heads, positions))
        init_table(self.rpb, 0.0004)
        init_table(self.tokens)

    def no_weight_decay(self) -> set[str]:
        """Parameters that no recipe decays, besides vectors: position biases and the network that computes them."""
        return super().no_weight_decay() | {"rpb"}

    def key_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the averages of a map."""
        if self.pool_size is not None:
            return self.pool_size, self.pool_size
        rows, columns = height // self.reduction, width // self.reduction
        return (rows, columns) if is_symbolic(height, width) else (max(rows, 1), max(columns, 1))

    def project_in(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Unit queries and keys, and values, `(B, H, W, heads, D)`; those of the averages `(B, n, heads, D)`."""
        q = F.normalize(self.q(x).unflatten(-1, (self.num_heads, -1)), dim=-1)
        features = F.gelu(self.sr(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        averages = self.norm(average_cells(features, self.key_size(x.shape[1], x.shape[2])).flatten(1, 2))
        (k, v), (k_pool, v_pool) = (self.kv(t).unflatten(-1, (2, self.num_heads, -1)).unbind(-3) for t in (x, averages))
        return (q.to(v.dtype), F.normalize(k, dim=-1).to(v.dtype), v, F.normalize(k_pool, dim=-1).to(v.dtype), v_pool)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        return self.project_out(self.attend(x))

    def attend(self, x: Tensor) -> Tensor:
        """What each head returns for each pixel of `(B, H, W, C)`: `(B, H, W, heads, D)`."""
        height, width = x.shape[1:3]
        q, k, v, k_pool, v_pool = self.project_in(x)
        keys = positions_inside(height, width, self.window_size, x.device).sum(-1) + k_pool.shape[1]
        length = keys.float().log().to(self.temperature.dtype)[..., None, None]  # float32, as the reference has it
        return aggregated_attention(
            self.scaled(q, length), k, v, k_pool, v_pool, self.window_size, bias=self.rpb,
            pool_bias=self.position_bias(height, width), token_q=q, tokens=self.tokens, token_bias=self.token_bias,
        )  # fmt: skip

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of position bias and products with keys, values and tokens on one map."""
        rows, columns = self.key_size(height, width)
        products = height * width * (3 * self.window_size**2 + 2 * rows * columns) * self.dim
        return products + self.bias_macs(height, width)


class CosineGlobalAttention(ExtrapolatingAttention):
    """Every pixel attends to every pixel by cosines, with a position bias that an MLP computes.

    Args:
        dim: Channels of the map; a multiple of `num_heads`.
        num_heads: Attention heads.
        pretrained_size: Side or `(height, width)` of the map that the position bias was trained with, by which offsets
            are measured.
        map_size: Map that the position bias is computed for and resized bilinearly from; None computes it for every
            map.
        round_length: Whether the logarithm of the number of keys is rounded to float32, as the dense-prediction
            backbones have it.
        qkv_bias: Whether the qkv projection has a bias.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, or a size is not positive.

    Paper: TransNeXt: Robust Foveal Visual Perception for Vision Transformers, arXiv 2311.17132.
    """

    cost = "O(N²)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        pretrained_size: Size = 7,
        map_size: Size | None = None,
        round_length: bool = False,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, pretrained_size, map_size, proj_drop)
        self.round_length = round_length
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)

    def project_in(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys of unit length, and values: `(B, H, W, heads, D)`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(3)
        return F.normalize(q, dim=-1).to(v.dtype), F.normalize(k, dim=-1).to(v.dtype), v

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        height, width = x.shape[1:3]
        q, k, v, bias = self.heads_in(x)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self.project_out(out.transpose(1, 2).unflatten(1, (height, width)))

    def heads_in(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scaled queries, keys and values `(B, H * W, heads, D)` of `(B, H, W, C)`; bias `(heads, H * W, H * W)`."""
        height, width = x.shape[1:3]
        q, k, v = self.project_in(x)
        bias = self.position_bias(height, width).flatten(1, 2).to(v.dtype)
        q, k, v = (t.flatten(1, 2) for t in (self.scaled(q, self._length(height * width)), k, v))
        return q, k, v, bias

    def _length(self, keys: int) -> Tensor | float:
        if not (self.round_length or is_symbolic(keys)):
            return math.log(keys)
        return torch.full((1,), keys, dtype=torch.float32, device=self.temperature.device).log()

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of position bias and both attention products on one map."""
        return 2 * (height * width) ** 2 * self.dim + self.bias_macs(height, width)
