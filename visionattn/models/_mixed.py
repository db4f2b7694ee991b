# SPDX-License-Identifier: Apache-2.0
"""Hosts whose stages begin with blocks of a mixer of linear cost and go on with the softmax attention of their own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ._class_token import ClassTokenHost
from ._pyramid import Pyramid
from .cswin import cswin, cswin_args
from .pvt import pvt, pvt_sides
from .pvtv2 import pvtv2
from .swin import patch_grid, swin, window_args

# Arguments of the linear mixer of a stage, by its index and the `(height, width)` of its map.
LinearArgs = Callable[[int, tuple[int, int]], Mapping[str, Any]]


def mixed_swin(
    mixer: str,
    linear_args: LinearArgs,
    linear_blocks: Sequence[int],
    depths: Sequence[int] = (2, 2, 6, 2),
    window_size: int = 7,
    img_size: int | tuple[int, int] = 224,
    patch_size: int = 4,
    shift_small_maps: bool = False,
    qkv_bias: bool = True,
    qk_scale: float | None = None,
    **kwargs: Any,
) -> Pyramid:
    """`swin` with another mixer in the first `linear_blocks` of each stage, over the whole map and without shift."""
    rows, columns = patch_grid(img_size, patch_size)

    def softmax_args(stage: int, block: int) -> dict[str, Any]:
        windows = window_args((rows, columns), window_size, shift_small_maps, stage, block)
        return {**windows, "qkv_bias": qkv_bias, "qk_scale": qk_scale}

    def args(stage: int, block: int) -> Mapping[str, Any]:
        if block >= linear_blocks[stage]:
            return softmax_args(stage, block)
        return linear_args(stage, (max(rows // 2**stage, 1), max(columns // 2**stage, 1)))

    return swin(
        depths=depths,
        img_size=img_size,
        patch_size=patch_size,
        mixers=_names(mixer, "window", linear_blocks, depths),
        mixer_args=args,
        **kwargs,
    )


def mixed_pvt(
    mixer: str,
    linear_args: LinearArgs,
    linear_blocks: Sequence[int],
    depths: Sequence[int] = (3, 4, 6, 3),
    reductions: Sequence[int] = (8, 4, 2, 1),
    linear_reductions: Sequence[int] = (1, 1, 1, 1),
    img_size: int = 224,
    overlapping: bool = False,
    qkv_bias: bool = True,
    **kwargs: Any,
) -> Pyramid:
    """`pvt`, or `pvtv2` if `overlapping`, with another mixer in the first `linear_blocks` of each stage."""
    sides = pvt_sides(img_size, len(depths))

    def args(stage: int, block: int) -> Mapping[str, Any]:
        if block >= linear_blocks[stage]:
            return {"qkv_bias": qkv_bias, "reduction": reductions[stage]}
        return {**linear_args(stage, (sides[stage], sides[stage])), "reduction": linear_reductions[stage]}

    mixers = _names(mixer, "spatial_reduction", linear_blocks, depths)
    host: dict[str, Any] = {"depths": depths, "reductions": reductions, "mixers": mixers, "mixer_args": args}
    return pvtv2(**host, **kwargs) if overlapping else pvt(**host, img_size=img_size, **kwargs)


def mixed_cswin(
    mixer: str,
    linear_args: LinearArgs,
    linear_blocks: Sequence[int],
    depths: Sequence[int] = (2, 4, 18, 1),
    stripe_widths: Sequence[int] = (1, 2, 7, 7),
    img_size: int = 224,
    qkv_bias: bool = True,
    qk_scale: float | None = None,
    **kwargs: Any,
) -> Pyramid:
    """`cswin` with another mixer in the first `linear_blocks` of each stage."""

    def args(stage: int, block: int) -> Mapping[str, Any]:
        if block >= linear_blocks[stage]:
            return {**cswin_args(stripe_widths, img_size, stage), "qkv_bias": qkv_bias, "qk_scale": qk_scale}
        side = max(img_size // 2 ** (stage + 2), 1)
        return linear_args(stage, (side, side))

    mixers = _names(mixer, "cross_shaped", linear_blocks, depths)
    return cswin(
        depths=depths, stripe_widths=stripe_widths, img_size=img_size, mixers=mixers, mixer_args=args, **kwargs
    )


def _names(linear: str, softmax: str, blocks: Sequence[int], depths: Sequence[int]) -> list[list[str]]:
    """Mixer of every block."""
    if len(blocks) != len(depths) or min(blocks, default=0) < 0:
        raise ValueError(f"linear_blocks={tuple(blocks)} must be a count for each of the {len(depths)} stages")
    return [[linear if j < n else softmax for j in range(depth)] for n, depth in zip(blocks, depths, strict=True)]


def mixed_deit(
    mixer: str,
    linear_args: LinearArgs,
    linear_blocks: int | None = None,
    depth: int = 12,
    embed_dim: int = 192,
    num_heads: int = 3,
    img_size: int = 224,
    patch_size: int = 16,
    qkv_bias: bool = True,
    qk_scale: float | None = None,
    **kwargs: Any,
) -> ClassTokenHost:
    """ViT with a class token and a linear mixer, softmax attention from block `linear_blocks` on unless it is None."""
    side = patch_grid(img_size, patch_size)[0]
    blocks = depth if linear_blocks is None else linear_blocks

    def args(block: int) -> Mapping[str, Any]:
        if block >= blocks:
            return {"qkv_bias": qkv_bias, "qk_scale": qk_scale}
        return {**linear_args(block, (side, side)), "class_token": True}

    return ClassTokenHost(
        depth=depth,
        dim=embed_dim,
        num_heads=num_heads,
        map_size=(side, side),
        patch_size=patch_size,
        mixer=[mixer if i < blocks else "tokens" for i in range(depth)],
        mixer_args=args,
        **kwargs,
    )
