# SPDX-License-Identifier: Apache-2.0
"""The host of residual attention networks: residual units and attention modules between them."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from visionattn.layers import BatchNorm, MapBatchNorm, init_conv_fan_out, init_linear, pool_type_of
from visionattn.layers.hourglass import UNITS, AttentionModule, UnitBlock, pool_down
from visionattn.layers.names import pick

from ._base import VisionModel, drop_path_rates

# How many times the masks of each stage pool, so that they end at stride 32.
POOLS = (3, 2, 1)


class PooledStem(nn.Module):
    """Image to a map at stride 4: a 7x7 convolution, norm, activation, and pooling.

    Args:
        in_chans: Channels of the image.
        dim: Channels of the map.
        pre_activation: Whether the stem holds the norm of what follows it.
    """

    stride = 4

    def __init__(self, in_chans: int, dim: int, pre_activation: bool) -> None:
        super().__init__()
        self.conv, self.conv_norm = nn.Conv2d(in_chans, dim, 7, 2, 3, bias=False), BatchNorm(dim)
        self.norm = BatchNorm(dim) if pre_activation else None

    def forward(self, x: Tensor) -> Tensor:
        """Images `(B, C, H, W)` to `(B, dim, H / 4, W / 4)`; the first halving rounds up, the second down."""
        return pool_down(F.relu(self.conv_norm(self.conv(x))))

    def sides(self, size: tuple[int, int]) -> list[int]:
        """Sides of the map of an image."""
        return [max((side + 1) // 4, 1) for side in size]


class Stage(nn.Module):
    """Blocks at one resolution, the first of which halves it."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)


class ActivatedNorm(nn.Sequential):
    """Batch norm of maps `(B, H, W, C)`, activated."""

    def __init__(self, dim: int) -> None:
        super().__init__(MapBatchNorm(dim), nn.ReLU())


class ResidualAttentionNetwork(VisionModel):
    """Backbone of residual units with attention modules between them; features at strides 4, 8, 16, 32.

    Args:
        depths: Attention modules at strides 4, 8 and 16, and further units at stride 32.
        embed_dim: Channels inside the first unit; results have four times as many, and twice as many a stage later.
        unit: Kind of the units, "pre_activation" or "grouped".
        groups: Groups of grouped units.
        output_norms: Whether each stage's feature has a batch norm of its own, for dense heads.
        in_chans: Channels of the image.
        num_classes: Classes of the head; 0 for none.
        global_pool: Pooling of the head, as timm names it.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Drop-path rate of the last block, rising linearly from 0.

    Raises:
        ValueError: If there are not four depths of at least one module each, or a unit's kind is unknown.

    Paper: Residual Attention Network for Image Classification, arXiv 1704.06904.
    """

    levels_name = "stages"

    def __init__(
        self,
        depths: Sequence[int] = (1, 1, 1, 2),
        embed_dim: int = 64,
        unit: str = "pre_activation",
        groups: int = 32,
        output_norms: bool = False,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans, num_classes)
        pick("unit", unit, UNITS)
        if len(depths) != 4 or min(depths) < 1:
            raise ValueError(f"depths={tuple(depths)} must have 4 entries of at least 1")
        is_pre = unit == "pre_activation"
        rates = drop_path_rates(drop_path_rate, [1 + depth for depth in depths])
        dims = [4 * embed_dim * 2**i for i in range(4)]
        self.stem = PooledStem(in_chans, embed_dim, is_pre)
        self.stages = nn.ModuleList()
        before = embed_dim
        kind: dict[str, Any] = {"unit": unit, "groups": groups}
        for i, dim in enumerate(dims):
            is_last = i == 3
            first = UnitBlock(before, dim, 1 if i == 0 else 2, **kind, drop_path=rates[i][0], out_norm=not is_last)
            if is_last:
                rest: list[nn.Module] = [
                    UnitBlock(dim, dim, **kind, drop_path=rate, own_norm=True, out_norm=False) for rate in rates[i][1:]
                ]
            else:
                rest = [AttentionModule(dim, POOLS[i], **kind, drop_path=rate) for rate in rates[i][1:]]
            self.stages.append(Stage([first, *rest]))
            before = dim
        self.feature_info = [
            {"num_chs": dim, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(dims)
        ]
        if output_norms:
            self.output_norms.update({str(i): MapBatchNorm(dim) for i, dim in enumerate(dims)})
        if is_pre:
            self.norm = ActivatedNorm(dims[-1])
        self._add_head(dims[-1], global_pool, drop_rate)
        self.apply(init_linear)
        self.apply(init_conv_fan_out)

    def _walk(self, x: Tensor, take: Sequence[int], last: int) -> tuple[Tensor, dict[int, Tensor]]:
        x = self.embed(x)
        active = _activated(self.stem, x)
        taken: dict[int, Tensor] = {}
        for i, level in enumerate(self.stages[: last + 1]):
            for block in cast(Stage, level).blocks:
                x = self.run_block(block, x, active)
                active = _activated(block, x)
            if i in take:
                taken[i] = x.permute(0, 2, 3, 1)
        return x.permute(0, 2, 3, 1), taken

    def _takes_final_norm(self, i: int, norm: bool) -> bool:
        return norm and i == 3

    def _end_at(self, level: int) -> None:
        cast(Any, self.stages[level]).blocks[-1].norm = None  # it was the next stage's
        self.norm = nn.Identity()
        self._add_head(self.feature_info[level]["num_chs"], pool_type_of(self.head), cast(Any, self.head).drop.p)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for layer-wise decay of the learning rate, as timm's regular expressions; `coarse` means by stage."""
        last = (99999,)
        fine = [(r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^output_norms\.(\d+)", last), (r"^norm", last)]
        by_stage = [(r"^(?:stages|output_norms)\.(\d+)", None), (r"^norm", last)]
        return {"stem": r"^stem", "blocks": by_stage if coarse else fine}


def _activated(part: nn.Module, x: Tensor) -> Tensor | None:
    """What pre-activation units read of the result of a part that holds their norm."""
    return None if part.norm is None else F.relu(cast(nn.Module, part.norm)(x))
