# SPDX-License-Identifier: Apache-2.0
"""Vision Mamba's hosts: a classifier whose class token stands amid the others, and a backbone that taps its blocks."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.layers import to_2tuple
from torch import Tensor, nn

from visionattn.layers import (
    ClassTokenEmbedding,
    MapBatchNorm,
    MiddleTokenEmbedding,
    PatchStem,
    PositionEmbedding,
    RotaryPosition,
    SelectiveScan,
    init_conv_lecun,
    init_linear,
    pick,
    split_class,
)

from ._isotropic import Isotropic

EMBEDDINGS: dict[str, type[nn.Module]] = {
    "middle": MiddleTokenEmbedding,
    "first": ClassTokenEmbedding,
    "none": PositionEmbedding,
}
TAPS, ENDS = ("mixer", "residual"), ("mixer", "residual", "norm")


class Vim(Isotropic):
    """`Isotropic` of selective scans, without MLPs, over the pixels and a class token.

    The last output is tokens `(B, 1 + H * W, C)`, the class token first wherever it stood; without one it is a map.

    Args:
        depth: Number of blocks.
        dim: Channels.
        img_size: Side or `(height, width)` of the images that the position table is made for; it is resized for others.
        patch_size: Side of a patch.
        patch_stride: Pixels from patch to patch; None for `patch_size`.
        class_token: Where the class token stands, "middle" or "first"; "none" for no class token.
        global_pool: Pooling of the head; None reads the class token, or averages the map where there is none.
        drop_rate: Dropout before the classifier.
        **kwargs: Of `Isotropic`.

    Raises:
        ValueError: If `class_token` is unknown.
    """

    stem: PatchStem

    def __init__(
        self,
        depth: int,
        dim: int,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        patch_stride: int | None = None,
        class_token: str = "middle",
        global_pool: str | None = None,
        drop_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        embedding = pick("class_token", class_token, EMBEDDINGS)
        super().__init__(
            depth, dim, 1, patch_size, False, mixer="selective_scan", mlp=None, patch_stride=patch_stride, **kwargs
        )
        self.pos_embed = embedding(dim, self.stem.map_size(*to_2tuple(img_size)))
        head, pool = ("linear", "avg") if class_token == "none" else ("token", "token")
        self._add_head(dim, pool if global_pool is None else global_pool, drop_rate, head)
        init_linear(self.get_classifier())
        init_conv_lecun(self.stem.proj)
        for block in self.blocks:
            if isinstance(block.attn, SelectiveScan):
                block.attn.init_linear_layers(depth)

    def _walk(self, x: Tensor, take: Sequence[int], last: int) -> tuple[Tensor, dict[int, Tensor]]:
        """Runs blocks 0..last; returns the last tokens, class token first, and the maps asked for."""
        if isinstance(self.pos_embed, PositionEmbedding):
            return super()._walk(x, take, last)
        tokens, size = self.embed(x), self.stem.map_size(x.shape[2], x.shape[3])
        usual = self.pos_embed.class_first if isinstance(self.pos_embed, MiddleTokenEmbedding) else nn.Identity()
        taken: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks[: last + 1]):
            tokens = self.run_block(block, tokens, size)
            if i in take:
                taken[i] = split_class(usual(tokens), size)[1]
        return usual(tokens), taken


class VimPyramid(Vim):
    """`Vim` without class token as a backbone for detection and segmentation: maps are tapped behind some blocks.

    With four taps the maps are brought to a quarter, a half, the whole and twice the stride of the patches.

    Args:
        taps: Blocks behind which maps are tapped, in rising order.
        tap: What is tapped: "mixer", what the block adds; or "residual", the sum that it adds to.
        last: What is tapped behind the last block where `tap` is "residual": also "norm", the normed sum.
        necks: Whether maps are brought to four strides; there must be four taps.
        rotary: Whether pixels are turned by their positions before every block.
        final_norm: Whether there is a norm after the last block.
        **kwargs: Of `Vim`.

    Raises:
        ValueError: If taps, their number or a name are not allowed.
    """

    levels_name = "necks"

    def __init__(
        self,
        taps: Sequence[int] = (5, 11, 17, 23),
        tap: str = "mixer",
        last: str = "mixer",
        necks: bool = True,
        rotary: bool = False,
        final_norm: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(class_token="none", **kwargs)
        depth, dim = len(self.blocks), self.num_features
        rising = list(taps) == sorted(set(taps)) and len(taps) > 0
        if not rising or taps[0] < 0 or taps[-1] >= depth or (necks and len(taps) != 4):
            count = "four blocks" if necks else "blocks"
            raise ValueError(f"taps={tuple(taps)} must name {count} of 0..{depth - 1} in rising order")
        for name, value, allowed in (("tap", tap, TAPS), ("last", last, ENDS)):
            if value not in allowed:
                raise ValueError(f"{name}={value!r} must be one of {allowed}")
        self.taps, self.tap, self.last_tap, self.last_block = tuple(taps), tap, last, depth - 1
        self.rotary = RotaryPosition(dim) if rotary else nn.Identity()
        self.norm = self.norm if final_norm else nn.Identity()
        self.necks = nn.ModuleList(_necks(dim) if necks else [nn.Identity() for _ in taps])
        stride = self.stem.stride
        strides = [max(stride // 4, 1), max(stride // 2, 1), stride, 2 * stride] if necks else [stride] * len(taps)
        self.feature_info = [{"num_chs": dim, "reduction": s, "module": f"necks.{i}"} for i, s in enumerate(strides)]

    def _walk(self, x: Tensor, take: Sequence[int], last: int) -> tuple[Tensor, dict[int, Tensor]]:
        """Runs the blocks up to tap `last`; returns the last sum and the maps asked for."""
        x = self.embed(x)
        taken: dict[int, Tensor] = {}
        ends = {block: i for i, block in enumerate(self.taps)}
        is_whole = last == len(self.taps) - 1
        for j, block in enumerate(self.blocks if is_whole else self.blocks[: self.taps[last] + 1]):
            x = self.rotary(x)
            branch = self.run_block(partial(_branch, block), x)
            x = x + branch
            if (i := ends.get(j)) in take and i is not None:
                taken[i] = self.necks[i](self._tapped(j, x, branch))
        return x, taken

    def _tapped(self, block: int, x: Tensor, branch: Tensor) -> Tensor:
        if self.tap == "mixer":
            return branch
        if block < self.last_block or self.last_tap == "residual":
            return x
        return branch if self.last_tap == "mixer" else self.norm(x)

    def _end_at(self, level: int) -> None:
        self.taps = self.taps[: level + 1]
        self.blocks = self.blocks[: self.taps[-1] + 1]

    def _drop_final_norm(self, take: Sequence[int]) -> None:
        if (self.tap, self.last_tap) != ("residual", "norm") or self.taps[-1] != self.last_block:
            super()._drop_final_norm(take)

    def freeze(self, levels: int) -> None:
        """Stops training of the stem and of all blocks and necks up to tap `levels`."""
        super().freeze(levels)
        self.blocks[: self.taps[levels - 1] + 1 if levels > 0 else 0].requires_grad_(False)


def _branch(block: Any, x: Tensor) -> Tensor:
    return block.drop_path(block.attn(block.norm1(x)))


class _Doubling(nn.ConvTranspose2d):
    """Doubles a map `(B, H, W, C)`."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 2, stride=2)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2), output_size).permute(0, 2, 3, 1)


class _Halving(nn.MaxPool2d):
    """Halves a map `(B, H, W, C)`; odd sides round up."""

    def __init__(self) -> None:
        super().__init__(2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _necks(dim: int) -> list[nn.Module]:
    fine = nn.Sequential(_Doubling(dim), MapBatchNorm(dim), nn.GELU(), _Doubling(dim))
    return [fine, nn.Sequential(_Doubling(dim)), nn.Identity(), _Halving()]
