# SPDX-License-Identifier: Apache-2.0
"""PVT: a pyramid of global attention to a summary of the map, with a position table in every stage.

Also the host of other mixers. It averages the last map, as the networks do that took it over; the authors' own reads a
class token in the last stage, so their files do not fit.

Paper: Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without Convolutions, arXiv 2102.12122.
"""

from collections.abc import Sequence
from typing import Any

from ._checkpoint import KeyMap, to_stage
from ._pyramid import MixerArgs, Pyramid
from ._reference import no_records
from ._registry import Family, Paper, Published, register
from .swin import position_planes

PAPER = Paper(
    "Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without Convolutions", "2102.12122"
)


def pvt(
    depths: Sequence[int] = (3, 4, 6, 3),
    dims: Sequence[int] = (64, 128, 320, 512),
    num_heads: Sequence[int] = (1, 2, 5, 8),
    reductions: Sequence[int] = (8, 4, 2, 1),
    img_size: int = 224,
    mixers: str | Sequence[str | Sequence[str]] | None = None,
    mixer_args: MixerArgs | None = None,
    qkv_bias: bool = True,
    **kwargs: Any,
) -> Pyramid:
    """Pyramid of spatially reduced attention with position tables.

    Args:
        depths: Blocks of each stage.
        dims: Channels of each stage.
        num_heads: Heads of each stage.
        reductions: Side of the patches of each stage that keys and values summarise.
        img_size: Side of the images that position tables are made for. Images of other sizes are taken too.
        mixers: Other token mixers, as `Pyramid` takes them; then `mixer_args` are theirs.
        mixer_args: Arguments of other mixers.
        qkv_bias: Whether projections to queries, keys and values have a bias.
        **kwargs: Of `Pyramid`.

    Raises:
        ValueError: If `reductions` has not one entry a stage.
    """
    if len(reductions) != len(depths):
        raise ValueError(f"reductions={tuple(reductions)} must have one entry for each of the {len(depths)} stages")
    sides = pvt_sides(img_size, len(depths))

    def reduced(stage: int, block: int) -> dict[str, Any]:
        return {"qkv_bias": qkv_bias, "reduction": reductions[stage]}

    return Pyramid(
        depths,
        dims,
        num_heads,
        stem="patch",
        stem_args={"drop_ragged": True},
        downsample="patch_position",
        downsample_args=[{"map_size": (side, side)} for side in sides[1:]],
        mixers=mixers or "spatial_reduction",
        mixer_args=reduced if mixers is None else mixer_args,
        position_size=(sides[0], sides[0]),
        position_mode="bilinear",
        own_last_norm=True,
        final_norm=False,
        norm_eps=1e-6,
        **kwargs,
    )


def pvt_sides(img_size: int, stages: int) -> list[int]:
    """Side of the map of each stage, odd ones rounded down.

    Raises:
        ValueError: If the image is too small for the stages.
    """
    if img_size < 2 ** (stages + 1):
        raise ValueError(f"img_size={img_size} must be at least {2 ** (stages + 1)} for {stages} stages")
    return [img_size // 2 ** (i + 2) for i in range(stages)]


KEYS = (
    (r"^patch_embed1\.", "stem."),
    (r"^patch_embed(\d)\.", to_stage("down.", 2)),
    (r"^pos_embed1$", "pos_embed.table", position_planes),
    (r"^pos_embed(\d)$", to_stage("down.position.table", 2), position_planes),
    (r"^block(\d)\.", to_stage("blocks.")),
    (r"^head\.", "head.fc."),
)

WIDE = (8, 8, 4, 4)
DEPTHS = {"tiny": (2, 2, 2, 2), "small": (3, 4, 6, 3), "medium": (3, 4, 18, 3), "large": (3, 8, 27, 3)}
VARIANTS: dict[str, dict[str, Any]] = {
    f"va_pvt_{size}": {"depths": depths, "mlp_ratio": WIDE} for size, depths in DEPTHS.items()
}
NOTE = "The authors' files hold networks with a class token in the last stage, which these are not"
WEIGHTS = {f"{name}.untrained": Published(name.removeprefix("va_"), "", note=NOTE) for name in VARIANTS}

MICRO = {"depths": (1, 2, 1, 1), "dims": (16, 16, 24, 32), "num_heads": (1, 2, 3, 4), "reductions": (4, 2, 2, 1),
         "mlp_ratio": (2, 2, 3, 3), "img_size": 64}  # fmt: skip
PVT = Family(
    "pvt", "PVT", (PAPER,), "apache-2.0", "https://github.com/whai362/PVT", pvt, (KeyMap("PVT", KEYS),), "pvt",
    no_records, micros={"va_pvt_tiny": MICRO},
)  # fmt: skip
register(__name__, PVT, VARIANTS, WEIGHTS)
