# SPDX-License-Identifier: Apache-2.0
"""Swin Transformer V2: shifted windows with cosine attention, a computed position bias, and norms after the branches.

The bias of a pair of pixels comes from a small network of their log-spaced offset, so that weights trained with small
windows can be fine-tuned with large ones.

Paper: Swin Transformer V2: Scaling Up Capacity and Resolution, arXiv 2111.09883. Weights: MIT.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ._checkpoint import KeyMap, to_stage
from ._pyramid import Pyramid
from ._reference import freeze, translate
from ._registry import Family, Paper, Published, register
from .swin import DENSE_ARGS, DERIVED, MICRO, RELEASES, SHARED, patch_grid, swin_variant, window_args

PAPER = Paper("Swin Transformer V2: Scaling Up Capacity and Resolution", "2111.09883")


def swinv2(
    embed_dim: int = 96,
    depths: Sequence[int] = (2, 2, 6, 2),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    window_size: int = 8,
    pretrained_windows: Sequence[int] | None = None,
    img_size: int | tuple[int, int] = 256,
    shift_small_maps: bool = False,
    patch_size: int = 4,
    patch_norm: bool = True,
    ape: bool = False,
    qkv_bias: bool = True,
    **kwargs: Any,
) -> Pyramid:
    """Pyramid of shifted-window cosine attention.

    Args:
        embed_dim: Channels of the first stage; each next has twice as many.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        window_size: Side of a window.
        pretrained_windows: Windows of each stage that the position bias was trained with, 0 for the stage's own;
            None for 0 everywhere.
        img_size: Side or `(height, width)` of the images that windows are made for: a stage whose map would be smaller
            than the window gets a window of the map's size. Images of other sizes are taken too.
        shift_small_maps: Windows never shrink, and maps that one window covers are shifted as well.
        patch_size: Side of a patch.
        patch_norm: Whether a LayerNorm follows the patch embedding.
        ape: Whether an absolute position embedding is added.
        qkv_bias: Whether queries and values have a bias.
        **kwargs: Of `Pyramid`.

    Raises:
        ValueError: If `pretrained_windows` has not one entry a stage.
    """
    pretrained = tuple(pretrained_windows or [0] * len(depths))
    if len(pretrained) != len(depths):
        raise ValueError(f"pretrained_windows={pretrained} must have one entry for each of the {len(depths)} stages")
    grid = patch_grid(img_size, patch_size)

    def mixer_args(stage: int, block: int) -> dict[str, Any]:
        windows = window_args(grid, window_size, shift_small_maps, stage, block)
        return {**windows, "pretrained_window": pretrained[stage], "qkv_bias": qkv_bias}

    return Pyramid(
        depths,
        [embed_dim * 2**i for i in range(len(depths))],
        num_heads,
        stem="patch",
        stem_args={"patch_size": patch_size, "norm": patch_norm},
        downsample="merge_post_norm",
        mixers="cosine_window",
        mixer_args=mixer_args,
        position_size=grid if ape else None,
        post_norm=True,
        **kwargs,
    )


def _per_head(scales: Tensor, target: Tensor) -> Tensor:
    return scales.flatten()


V2 = (*SHARED, (r"\.logit_scale$", ".logit_scale", _per_head))
CONSTANT = (*DERIVED, r"\.relative_coords_table$")
AUTHORS = KeyMap("Microsoft Swin V2", (*V2, (r"^head\.", "head.fc.")), CONSTANT)
TIMM = KeyMap("timm", ((r"^layers\.(\d+)\.downsample\.", to_stage("down.")), *V2), CONSTANT)


def _from_reference(record: Mapping[str, Any]) -> Pyramid:
    config = record["config"]
    names = {name: name for name in ("depths", "window_size", "img_size", "ape")}
    args = translate(config, {**names, "pretrained_window_sizes": "pretrained_windows"})
    args.pop("qk_scale")  # the reference has none
    model = swinv2(**args)
    freeze(model, config)
    return model


def _fine_tuned(window_size: int, img_size: int) -> dict[str, Any]:
    """Windows grown from those of 12 that the 192-pixel pre-training had."""
    return {"window_size": window_size, "img_size": img_size, "pretrained_windows": (12, 12, 12, 6)}


AT_256 = {8: {"window_size": 8}, 16: {"window_size": 16}}
PRE = {"window_size": 12, "img_size": 192}
VARIANTS = {
    "va_swinv2_tiny_window8": swin_variant(96, 3, 6, 0.2, **AT_256[8]),
    "va_swinv2_tiny_window16": swin_variant(96, 3, 6, 0.2, **AT_256[16]),
    "va_swinv2_small_window8": swin_variant(96, 3, 18, 0.3, **AT_256[8]),
    "va_swinv2_small_window16": swin_variant(96, 3, 18, 0.3, **AT_256[16]),
    "va_swinv2_base_window8": swin_variant(128, 4, 18, 0.5, **AT_256[8]),
    "va_swinv2_base_window16": swin_variant(128, 4, 18, 0.5, **AT_256[16]),
    "va_swinv2_base_window12": swin_variant(128, 4, 18, 0.2, **PRE),
    "va_swinv2_base_window12to16": swin_variant(128, 4, 18, 0.2, **_fine_tuned(16, 256)),
    "va_swinv2_base_window12to24": swin_variant(128, 4, 18, 0.2, **_fine_tuned(24, 384)),
    "va_swinv2_large_window12": swin_variant(192, 6, 18, 0.2, **PRE),
    "va_swinv2_large_window12to16": swin_variant(192, 6, 18, 0.2, **_fine_tuned(16, 256)),
    "va_swinv2_large_window12to24": swin_variant(192, 6, 18, 0.2, **_fine_tuned(24, 384)),
}


def _row(name: str, *figures: float, size: int = 256, **more: Any) -> Published:
    url = f"{RELEASES}/v2.0.0/swinv2_{name}.pth"
    return Published(f"swinv2_{name}", url, *figures, size=size, crop_pct=1.0 if size == 384 else 0.875, **more)


FULL: dict[str, Any] = {"size": 192, "num_classes": 21841}
WEIGHTS = {
    "va_swinv2_tiny_window8.in1k": _row("tiny_patch4_window8_256", 81.8, 95.9, 28, 5.9),
    "va_swinv2_tiny_window16.in1k": _row("tiny_patch4_window16_256", 82.8, 96.2, 28, 6.6),
    "va_swinv2_small_window8.in1k": _row("small_patch4_window8_256", 83.7, 96.6, 50, 11.5),
    "va_swinv2_small_window16.in1k": _row("small_patch4_window16_256", 84.1, 96.8, 50, 12.6),
    "va_swinv2_base_window8.in1k": _row("base_patch4_window8_256", 84.2, 96.9, 88, 20.3),
    "va_swinv2_base_window16.in1k": _row("base_patch4_window16_256", 84.6, 97.0, 88, 21.8),
    "va_swinv2_base_window12.in22k": _row("base_patch4_window12_192_22k", **FULL),
    "va_swinv2_base_window12to16.in22k_ft_in1k": _row(
        "base_patch4_window12to16_192to256_22kto1k_ft", 86.2, 97.9, 88, 21.8),
    "va_swinv2_base_window12to24.in22k_ft_in1k": _row(
        "base_patch4_window12to24_192to384_22kto1k_ft", 87.1, 98.2, 88, 54.7, size=384),
    "va_swinv2_large_window12.in22k": _row("large_patch4_window12_192_22k", **FULL),
    "va_swinv2_large_window12to16.in22k_ft_in1k": _row(
        "large_patch4_window12to16_192to256_22kto1k_ft", 86.9, 98.0, 197, 47.5),
    "va_swinv2_large_window12to24.in22k_ft_in1k": _row(
        "large_patch4_window12to24_192to384_22kto1k_ft", 87.6, 98.3, 197, 115.4, size=384),
}  # fmt: skip

SWINV2 = Family(
    "swinv2", "Swin Transformer V2", (PAPER,), "mit", "https://github.com/microsoft/Swin-Transformer", swinv2,
    (AUTHORS, TIMM), "swinv2", _from_reference,
    micros={"va_swinv2_tiny_window8": {**MICRO, "pretrained_windows": (3, 3, 0, 2)}},
    dense_args={"*": DENSE_ARGS},  # the authors published none; this is what their first version does
)  # fmt: skip
register(__name__, SWINV2, VARIANTS, WEIGHTS)
