# SPDX-License-Identifier: Apache-2.0
"""Swin Transformer (V1): attention in windows whose grid is shifted by half a window in every second block.

Paper: Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, arXiv 2103.14030. Weights: MIT.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from timm.layers import to_2tuple
from torch import Tensor

from ._checkpoint import KeyMap, grid_of, to_stage
from ._pyramid import MixerArgs, Pyramid
from ._reference import dense_args, freeze, translate
from ._registry import Dense, Family, Paper, Published, register

PAPER = Paper("Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", "2103.14030")
RELEASES = "https://github.com/SwinTransformer/storage/releases/download"


def swin(
    embed_dim: int = 96,
    depths: Sequence[int] = (2, 2, 6, 2),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    window_size: int = 7,
    img_size: int | tuple[int, int] = 224,
    shift_small_maps: bool = False,
    patch_size: int = 4,
    patch_norm: bool = True,
    ape: bool = False,
    mixers: str | Sequence[str | Sequence[str]] | None = None,
    mixer_args: MixerArgs | None = None,
    qkv_bias: bool = True,
    qk_scale: float | None = None,
    **kwargs: Any,
) -> Pyramid:
    """Pyramid of shifted-window attention.

    Args:
        embed_dim: Channels of the first stage; each next has twice as many.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        window_size: Side of a window.
        img_size: Side or `(height, width)` of the images that sizes of tables are made for: a stage whose map would
            be smaller than the window gets a window of the map's size. Images of other sizes are taken too.
        shift_small_maps: Behave as the dense-prediction backbones do: windows never shrink, and maps that one
            window covers are shifted as well.
        patch_size: Side of a patch.
        patch_norm: Whether a LayerNorm follows the patch embedding.
        ape: Whether an absolute position embedding is added.
        mixers: Other token mixers, as `Pyramid` takes them; then `mixer_args` are theirs.
        mixer_args: Arguments of other mixers; `window_args` makes those of windows among them.
        qkv_bias: Whether qkv projections have a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        **kwargs: Of `Pyramid`.
    """
    grid = patch_grid(img_size, patch_size)

    def shifted(stage: int, block: int) -> dict[str, Any]:
        windows = window_args(grid, window_size, shift_small_maps, stage, block)
        return {**windows, "qkv_bias": qkv_bias, "qk_scale": qk_scale}

    return Pyramid(
        depths,
        [embed_dim * 2**i for i in range(len(depths))],
        num_heads,
        stem="patch",
        stem_args={"patch_size": patch_size, "norm": patch_norm},
        downsample="merge",
        mixers=mixers or "window",
        mixer_args=shifted if mixers is None else mixer_args,
        position_size=grid if ape else None,
        **kwargs,
    )


def patch_grid(img_size: int | tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches of an image, the last ones filled up."""
    height, width = to_2tuple(img_size)
    return -(-height // patch_size), -(-width // patch_size)


def window_args(
    grid: tuple[int, int], window_size: int, shift_small_maps: bool, stage: int, block: int
) -> dict[str, Any]:
    """Window of one block: at most as large as the stage's map, shifted by its half in every second block.

    Args:
        grid: Map of the first stage.
        window_size: Side of a window.
        shift_small_maps: Keep window and shift on maps that are smaller.
        stage: Index of the stage.
        block: Index of the block in its stage.
    """
    smallest = max(min(grid) // 2**stage, 1)
    window = window_size if shift_small_maps else min(window_size, smallest)
    return {"window_size": window, "shift": window // 2 if block % 2 else 0, "shift_small_maps": shift_small_maps}


def mirrored(table: Tensor, target: Tensor) -> Tensor:
    """`(positions, heads)` by query minus key to `(heads, height, width)` by key minus query."""
    grid = grid_of(table.shape[0], (target.shape[1], target.shape[2]))
    return table if grid is None else table.t().reshape(-1, *grid).flip(1, 2)


def position_planes(table: Tensor, target: Tensor) -> Tensor:
    """`(1, positions, C)` of the classifiers or `(1, C, height, width)` of the dense backbones to `(C, h, w)`."""
    if table.ndim == 4:
        return table[0]
    grid = grid_of(table.shape[1], (target.shape[1], target.shape[2]))
    return table if grid is None else table[0].t().reshape(-1, *grid)


SHARED = (
    (r"^layers\.", "stages."),
    (r"\.downsample\.", ".down."),
    (r"^patch_embed\.", "stem."),
    (r"^absolute_pos_embed$", "pos_embed.table", position_planes),
    (r"relative_position_bias_table$", "rpb", mirrored),
    (r"^norm(\d+)\.", r"output_norms.\1."),
)
DERIVED = (r"\.attn_mask$", r"\.relative_position_index$")
AUTHORS = KeyMap("Microsoft Swin", (*SHARED, (r"^head\.", "head.fc.")), DERIVED)
# timm downsamples at the start of a stage, the authors and we at the end.
TIMM = KeyMap("timm", ((r"^layers\.(\d+)\.downsample\.", to_stage("down.")), *SHARED), DERIVED)


def _from_reference(record: Mapping[str, Any]) -> Pyramid:
    config = dict(record["config"])
    is_dense = "pretrain_img_size" in config
    args = translate(config, {"depths": "depths", "window_size": "window_size", "img_size": "img_size", "ape": "ape",
                              "pretrain_img_size": "img_size"})  # fmt: skip
    if is_dense:
        args |= dense_args(config, len(config["depths"])) | {"shift_small_maps": True}
    model = swin(**args)
    freeze(model, config)
    return model


def swin_variant(dim: int, heads: int, depth: int, rate: float, **more: Any) -> dict[str, Any]:
    """Variant of four stages whose heads double and of which the third has `depth` blocks, the others two."""
    num_heads = tuple(heads * 2**i for i in range(4))
    return {"embed_dim": dim, "depths": (2, 2, depth, 2), "num_heads": num_heads, "drop_path_rate": rate, **more}


LARGE_IMAGES: dict[str, Any] = {"window_size": 12, "img_size": 384}
VARIANTS = {
    "va_swin_tiny": swin_variant(96, 3, 6, 0.2),
    "va_swin_small": swin_variant(96, 3, 18, 0.3),
    "va_swin_base": swin_variant(128, 4, 18, 0.5),
    "va_swin_base_384": swin_variant(128, 4, 18, 0.5, **LARGE_IMAGES),
    "va_swin_large": swin_variant(192, 6, 18, 0.2),
    "va_swin_large_384": swin_variant(192, 6, 18, 0.2, **LARGE_IMAGES),
    "va_swin_tiny_c24": swin_variant(96, 4, 6, 0.2, window_size=8, img_size=256),
}


def _row(name: str, figures: tuple[Any, ...], release: str = "v1.0.0", **more: Any) -> Published:
    if name.endswith("_22k"):
        more |= {"num_classes": 21841}
    if "384" in name:
        more |= {"size": 384, "crop_pct": 1.0}
    return Published(name, f"{RELEASES}/{release}/{name}.pth", *figures, **more)


LOW: dict[str, Any] = {"args": {"drop_path_rate": 0.1}}
MID: dict[str, Any] = {"args": {"drop_path_rate": 0.2}}
WEIGHTS = {
    "va_swin_tiny.in1k": _row("swin_tiny_patch4_window7_224", (81.2, 95.5, 28, 4.5)),
    "va_swin_tiny.in22k_ft_in1k": _row(
        "swin_tiny_patch4_window7_224_22kto1k_finetune", (80.9, 96.0, 28, 4.5), "v1.0.8", **LOW),
    "va_swin_tiny.in22k": _row("swin_tiny_patch4_window7_224_22k", (), "v1.0.8", **LOW),
    "va_swin_small.in1k": _row("swin_small_patch4_window7_224", (83.2, 96.2, 50, 8.7)),
    "va_swin_small.in22k_ft_in1k": _row(
        "swin_small_patch4_window7_224_22kto1k_finetune", (83.2, 97.0, 50, 8.7), "v1.0.8", **MID),
    "va_swin_small.in22k": _row("swin_small_patch4_window7_224_22k", (), "v1.0.8", **MID),
    "va_swin_base.in1k": _row("swin_base_patch4_window7_224", (83.5, 96.5, 88, 15.4)),
    "va_swin_base.in22k_ft_in1k": _row("swin_base_patch4_window7_224_22kto1k", (85.2, 97.5, 88, 15.4), **MID),
    "va_swin_base.in22k": _row("swin_base_patch4_window7_224_22k", (), **MID),
    "va_swin_base_384.in1k": _row("swin_base_patch4_window12_384", (84.5, 97.0, 88, 47.1)),
    "va_swin_base_384.in22k_ft_in1k": _row("swin_base_patch4_window12_384_22kto1k", (86.4, 98.0, 88, 47.1), **MID),
    "va_swin_base_384.in22k": _row("swin_base_patch4_window12_384_22k", (), **MID),
    "va_swin_large.in22k_ft_in1k": _row("swin_large_patch4_window7_224_22kto1k", (86.3, 97.9, 197, 34.5)),
    "va_swin_large.in22k": _row("swin_large_patch4_window7_224_22k", ()),
    "va_swin_large_384.in22k_ft_in1k": _row("swin_large_patch4_window12_384_22kto1k", (87.3, 98.2, 197, 103.9)),
    "va_swin_large_384.in22k": _row("swin_large_patch4_window12_384_22k", ()),
    "va_swin_tiny_c24.in1k": _row(
        "swin_tiny_c24_patch4_window8_256", (81.6, 95.7, 28, 5.9), "v1.0.5", size=256),
}  # fmt: skip

# What the classification class and the dense class differ in.
DENSE_ARGS = {"shift_small_maps": True, "output_norms": True}
MICRO = {"embed_dim": 16, "depths": (2, 2, 1, 1), "num_heads": (1, 2, 2, 4), "window_size": 4, "img_size": 64}
SWIN = Family(
    "swin", "Swin Transformer", (PAPER,), "mit", "https://github.com/microsoft/Swin-Transformer", swin,
    (AUTHORS, TIMM), "swin", _from_reference, micros={"va_swin_tiny": MICRO}, dense_args={"*": DENSE_ARGS},
)  # fmt: skip
T, S, B = (f"va_swin_{size}.in1k" for size in ("tiny", "small", "base"))
DENSE = {
    T: (
        Dense("Mask R-CNN 1x", 43.7, 39.8),
        Dense("Mask R-CNN 3x", 46.0, 41.6),
        Dense("Cascade Mask R-CNN 1x", 48.1, 41.7),
        Dense("Cascade Mask R-CNN 3x", 50.4, 43.7),
        Dense("RepPointsV2 3x", 50.0),
        Dense("UPerNet 160k", miou=44.51, miou_multi=45.81),
    ),
    S: (
        Dense("Mask R-CNN 3x", 48.5, 43.3),
        Dense("Cascade Mask R-CNN 3x", 51.9, 45.0),
        Dense("UPerNet 160k", miou=47.64, miou_multi=49.47),
    ),
    B: (Dense("Cascade Mask R-CNN 3x", 51.9, 45.0), Dense("UPerNet 160k", miou=48.13, miou_multi=49.72)),
    "va_swin_base.in22k": (
        Dense("HTC++", 56.4, 49.1),
        Dense("UPerNet 160k", miou=50.04, miou_multi=51.66, note="crops of 640 pixels"),
    ),
    "va_swin_large.in22k": (
        Dense("HTC++", 57.1, 49.5),
        Dense("UPerNet 160k", miou=52.05, miou_multi=53.53, note="crops of 640 pixels"),
    ),
}
register(__name__, SWIN, VARIANTS, WEIGHTS, DENSE)
