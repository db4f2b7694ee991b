# SPDX-License-Identifier: Apache-2.0
"""Attention of any queries to a few points on maps of several scales."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from visionattn.kernels import ms_deform_attn

from .checks import check_heads


class MultiScaleDeformableAttention(nn.Module):
    """Each query reads `num_points` points around its reference on every level; offsets and weights are linear in it.

    Its parameters have the names of the authors' and of mmcv's module; residual, dropout and the query's position,
    which mmcv's adds inside, are left to the caller.

    Args:
        dim: Channels of queries and maps.
        num_heads: Attention heads.
        num_levels: Maps.
        num_points: Points on each map.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, or a number is not positive.

    Paper: Deformable DETR, arXiv 2010.04159.
    """

    def __init__(self, dim: int = 256, num_heads: int = 8, num_levels: int = 4, num_points: int = 4) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        if min(num_levels, num_points) < 1:
            raise ValueError(f"num_levels={num_levels} and num_points={num_points} must be positive")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        count = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(dim, 2 * count)
        self.attention_weights = nn.Linear(dim, count)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Heads look in directions of their own, each point one step farther, with equal weights."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        angle = torch.arange(self.num_heads, device=self.value_proj.weight.device) * (2 * math.pi / self.num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = (direction / direction.abs().amax(-1, keepdim=True))[:, None, None]
        steps = torch.arange(1, self.num_points + 1, device=angle.device)[:, None]
        offsets = (direction * steps).expand(-1, self.num_levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.reshape(-1))

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Tensor | Sequence[Sequence[int]],
        level_start_index: Tensor | Sequence[int] | None = None,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """What the queries read.

        Args:
            query: `(N, Q, C)`, their positions added.
            reference_points: `(N, Q, levels, 2)`, (x, y) from 0 to 1; or `(N, Q, levels, 4)` with the width and height
                of a box around them, which offsets are measured by.
            value: Maps of all levels `(N, S, C)`, see `ms_deform_attn`.
            spatial_shapes: Height and width of each level.
            level_start_index: First pixel of each level; None where they follow each other.
            padding_mask: `(N, S)`, true for pixels that are padding and count as zero.

        Returns:
            `(N, Q, C)`.

        Raises:
            ValueError: If `reference_points` has neither 2 nor 4 numbers a point, or as `ms_deform_attn` says.
        """
        heads, grid = self.num_heads, (self.num_heads, self.num_levels, self.num_points)
        maps = self.value_proj(value)
        if padding_mask is not None:
            maps = maps.masked_fill(padding_mask[..., None], 0)
        offsets = self.sampling_offsets(query).unflatten(-1, (*grid, 2))
        weights = self.attention_weights(query).unflatten(-1, (heads, -1)).softmax(-1).unflatten(-1, grid[1:])
        places = self._places(reference_points, offsets, spatial_shapes)
        out = ms_deform_attn(maps.unflatten(-1, (heads, -1)), spatial_shapes, level_start_index, places, weights)
        return self.output_proj(out)

    def _places(self, reference: Tensor, offsets: Tensor, shapes: Tensor | Sequence[Sequence[int]]) -> Tensor:
        """Where points lie, `(N, Q, heads, levels, points, 2)`."""
        if reference.shape[-1] not in (2, 4):
            raise ValueError(f"reference_points has shape {tuple(reference.shape)}; its last axis must be 2 or 4")
        reference = reference[:, :, None, :, None]
        if reference.shape[-1] == 4:
            return reference[..., :2] + offsets / self.num_points * reference[..., 2:] * 0.5
        sizes = torch.as_tensor(shapes, device=offsets.device).flip(-1)  # (levels, 2), (width, height)
        return reference + offsets / sizes[:, None].to(reference.dtype)
