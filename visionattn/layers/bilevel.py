# SPDX-License-Identifier: Apache-2.0
"""Bi-level routing attention, and the global attention that its pyramids end in; both with local enhancement."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.kernels import routed_attention
from visionattn.kernels.pattern import ceil_div
from visionattn.kernels.routed_torch import regions_of

from .attention import RelativeAttention
from .padding import crop_to_size, pad_map, pad_to_multiple

POOLS = {"avg": F.adaptive_avg_pool2d, "max": F.adaptive_max_pool2d}


def _depthwise(dim: int, kernel_size: int) -> nn.Conv2d | None:
    """Convolution of a local enhancement; none for a kernel of 0."""
    if kernel_size == 0:
        return None
    if kernel_size < 0 or kernel_size % 2 == 0:
        raise ValueError(f"lepe_kernel={kernel_size} must be odd and positive, or 0 for none")
    return nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)


def _enhanced(conv: nn.Conv2d | None, source: Tensor, out: Tensor) -> Tensor:
    """`out` and the convolution of `source`, both (B, H, W, heads, D) but for how `source` splits its channels."""
    if conv is None:
        return out
    return out + conv(source.flatten(3).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).reshape(out.shape)


class BilevelAttention(nn.Module):
    """Every region of a grid attends to the pixels of the `topk` regions whose mean key fits its mean query best.

    No gradient passes through the choice. A depth-wise convolution of the values, the local enhancement, is added.

    Args:
        dim: Channels of the map.
        num_heads: Attention heads; the choice of regions is common to all.
        num_regions: Rows and columns of regions.
        topk: Regions that a region attends to, at most all.
        lepe_kernel: Side of the local enhancement's convolution, odd; 0 for none.
        pad_projected: How a map that the grid does not divide is filled up. False: zeros before the qkv projection,
            which count in the means. True: regions of `height // num_regions` rows, as many as it takes, with zeros
            after the projection, which do not. Zeros take part in the softmax as keys both times.
        qkv_bias: Whether the qkv projection has a bias.
        qk_scale: Factor on the logits; None means `qk_dim ** -0.5`, of all heads together.
        proj_drop: Dropout after the output projection.
        qk_dim: Channels of queries and keys; None means `dim`.
        routing: "hard"; "soft" to weigh keys and values of a region by the softmax of the chosen regions' logits;
            "learned" for soft routing by a linear map of the means, which gradients pass through.
        kv_pool: Pooling of each region's keys and values, "avg" or "max"; None for none.
        kv_pool_size: Rows and columns that it leaves of a region; a negative number divides by its absolute value.
        proj: Whether there is an output projection.

    Raises:
        ValueError: If an argument is out of range.

    Paper: BiFormer: Vision Transformer with Bi-Level Routing Attention, arXiv 2303.08810.
    """

    cost = "O(N²)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_regions: int = 7,
        topk: int = 4,
        lepe_kernel: int = 5,
        pad_projected: bool = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        qk_dim: int | None = None,
        routing: str = "hard",
        kv_pool: str | None = None,
        kv_pool_size: int = 1,
        proj: bool = True,
    ) -> None:
        super().__init__()
        qk_dim = qk_dim or dim
        if num_heads < 1 or dim % num_heads or qk_dim % num_heads:
            raise ValueError(f"num_heads={num_heads} must be a positive divisor of dim={dim} and qk_dim={qk_dim}")
        if num_regions < 1:
            raise ValueError(f"num_regions={num_regions} must be at least 1")
        if not 1 <= topk <= num_regions**2:
            raise ValueError(f"topk={topk} must be at least 1 and at most the {num_regions**2} regions")
        if routing not in ("hard", "soft", "learned"):
            raise ValueError(f"routing={routing!r} must be 'hard', 'soft' or 'learned'")
        if kv_pool is not None and (kv_pool not in POOLS or kv_pool_size == 0):
            raise ValueError(f"kv_pool={kv_pool!r} must be 'avg', 'max' or None, and kv_pool_size={kv_pool_size} not 0")
        self.dim, self.qk_dim, self.num_heads = dim, qk_dim, num_heads
        self.num_regions, self.topk, self.pad_projected = num_regions, topk, pad_projected
        self.routing, self.kv_pool, self.kv_pool_size = routing, kv_pool, kv_pool_size
        self.scale = qk_dim**-0.5 if qk_scale is None else qk_scale
        self.qkv = nn.Linear(dim, 2 * qk_dim + dim, bias=qkv_bias)
        self.router = nn.Linear(qk_dim, qk_dim) if routing == "learned" else None
        self.lepe = _depthwise(dim, lepe_kernel)
        self.proj = nn.Linear(dim, dim) if proj else nn.Identity()
        self.proj_drop = nn.Dropout(proj_drop)

    def project_in(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `(B, H, W, heads, D)`, views of one packed projection."""
        q, k, v = self.qkv(x).split((self.qk_dim, self.qk_dim, self.dim), -1)
        heads = (self.num_heads, -1)
        return q.unflatten(-1, heads), k.unflatten(-1, heads), v.unflatten(-1, heads)

    def project_out(self, x: Tensor) -> Tensor:
        """Joins the heads of `(B, H, W, heads, D)` and projects them."""
        return self.proj_drop(self.proj(x.flatten(3)))

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        height, width = x.shape[1:3]
        if not self.pad_projected:
            x = pad_to_multiple(x, self.num_regions)
        q, k, v = self.project_in(x)
        out = _enhanced(self.lepe, v, self.attend(q, k, v))
        return self.project_out(crop_to_size(out, height, width))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Routed attention of projected maps `(B, H, W, heads, D)`."""
        height, width = q.shape[1:3]
        if not self.pad_projected:
            grid = (self.num_regions, self.num_regions)
            return self._attend(q, k, v, grid, self._choose(self._means(q, grid), self._means(k, grid)))
        rows, columns = (torch.sym_max(side // self.num_regions, 1) for side in (height, width))
        grid = (ceil_div(height, rows), ceil_div(width, columns))
        missing = (grid[0] * rows - height, grid[1] * columns - width)
        q, k, v = (pad_map(t.flatten(3), *missing).unflatten(-1, (self.num_heads, -1)) for t in (q, k, v))
        # Share of real pixels in each region: the means are theirs alone.
        real = self._share(height, rows, q)[:, None] * self._share(width, columns, q)
        means = (self._means(t, grid) / real.reshape(-1, 1) for t in (q, k))
        return crop_to_size(self._attend(q, k, v, grid, self._choose(*means)), height, width)

    @staticmethod
    def _share(side: int, region: int, like: Tensor) -> Tensor:
        first = torch.arange(0, ceil_div(side, region), device=like.device) * region
        return (side - first).clamp(max=region).to(like.dtype) / region

    @staticmethod
    def _means(x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Means `(B, regions, C)` of the regions of a map."""
        x = x.flatten(3)
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        return regions_of(x, grid).mean(2)

    def _choose(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Regions `(B, regions, topk)` that each region attends to, and their weights, by means of queries and keys."""
        if self.router is None:
            q, k = q.detach(), k.detach()
        else:
            q, k = self.router(q), self.router(k)
        logits = self.scale * q @ k.transpose(1, 2)
        best, routes = logits.topk(torch.sym_min(self.topk, k.shape[1]), -1)
        return routes, best.softmax(-1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int], chosen: tuple[Tensor, Tensor]) -> Tensor:
        routes, weights = chosen
        if self.kv_pool is not None:
            k, v = self._pooled(k, grid), self._pooled(v, grid)
        soft = None if self.routing == "hard" else weights
        return routed_attention(q, k, v, routes, grid, scale=self.scale, route_weights=soft)

    def _pooled(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Map whose regions are pooled one by one."""
        batch, height, width, heads, head_dim = x.shape
        rows, columns = height // grid[0], width // grid[1]
        cut = x.reshape(batch, grid[0], rows, grid[1], columns, -1).permute(0, 1, 3, 5, 2, 4)
        size = self.kv_pool_size
        if size < 0:
            kept = (max(rows // -size, 1), max(columns // -size, 1))
            cut = cut[..., : kept[0] * max(-size, 1), : kept[1] * max(-size, 1)]
        else:
            kept = (size, size)
        pooled = POOLS[str(self.kv_pool)](cut.flatten(0, 2), kept).reshape(*cut.shape[:4], *kept)
        pooled = pooled.permute(0, 1, 4, 2, 5, 3).reshape(batch, grid[0] * kept[0], grid[1] * kept[1], -1)
        return pooled.unflatten(-1, (heads, head_dim))

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of routing, attention products and local enhancement on one map, softmax left out."""
        count = self.num_regions
        rows, columns = (max(n // count, 1) if self.pad_projected else ceil_div(n, count) for n in (height, width))
        grid = (ceil_div(height, rows), ceil_div(width, columns)) if self.pad_projected else (count, count)
        regions, region = grid[0] * grid[1], rows * columns
        keys = min(self.topk, regions) * region
        kernel = 0 if self.lepe is None else self.lepe.kernel_size[0] ** 2
        pixels = regions * region
        return pixels * (keys * (self.qk_dim + self.dim) + kernel * self.dim) + regions**2 * self.qk_dim


class EnhancedAttention(RelativeAttention):
    """Every pixel attends to every pixel; a depth-wise convolution, the local enhancement, is added.

    Args:
        dim: Channels of the map.
        num_heads: Attention heads.
        lepe_kernel: Side of the local enhancement's convolution, odd; 0 for none.
        enhance_values: Convolve the values, as papers have it, not the mixer's input.
        qkv_bias: Whether the qkv projection has a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If `num_heads` or `lepe_kernel` does not fit.

    Paper: BiFormer, arXiv 2303.08810 (last stage).
    """

    cost = "O(N²)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        lepe_kernel: int = 5,
        enhance_values: bool = False,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, None, qkv_bias, qk_scale, proj_drop)
        self.enhance_values = enhance_values
        self.lepe = _depthwise(dim, lepe_kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1."""
        # Merging axes of other strides would tie a trace to a batch of more than one image.
        q, k, v = (t.contiguous() for t in self.project_in(x))
        flat = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(*flat, scale=self.scale).transpose(1, 2).reshape(v.shape)
        return self.project_out(_enhanced(self.lepe, v if self.enhance_values else x, out))

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of attention products and local enhancement on one map, softmax left out."""
        kernel = 0 if self.lepe is None else self.lepe.kernel_size[0] ** 2
        return height * width * (2 * height * width + kernel) * self.dim
