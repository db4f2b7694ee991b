# SPDX-License-Identifier: Apache-2.0
"""CSWin Transformer: a pyramid whose heads attend along the columns and along the rows of the map.

Stripes widen from stage to stage and the last stage attends globally. Also the host of other mixers.

Paper: CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows, arXiv 2107.00652.
Weights: MIT.
"""

from collections.abc import Sequence
from typing import Any

from ._checkpoint import KeyMap, to_stage
from ._pyramid import MixerArgs, Pyramid
from ._reference import no_records
from ._registry import Family, Paper, Published, register

PAPER = Paper("CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows", "2107.00652")
ORIGIN = "https://github.com/microsoft/CSWin-Transformer"


def cswin(
    embed_dim: int = 64,
    depths: Sequence[int] = (1, 2, 21, 1),
    num_heads: Sequence[int] = (2, 4, 8, 16),
    stripe_widths: Sequence[int] = (1, 2, 7, 7),
    img_size: int = 224,
    mixers: str | Sequence[str | Sequence[str]] | None = None,
    mixer_args: MixerArgs | None = None,
    qkv_bias: bool = True,
    qk_scale: float | None = None,
    **kwargs: Any,
) -> Pyramid:
    """Pyramid of attention in cross-shaped windows.

    Args:
        embed_dim: Channels of the first stage; each next has twice as many.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        stripe_widths: Pixels across the stripes of each stage.
        img_size: Side of the images that stripes are made for: the last stage, and a stage whose map is as wide as its
            stripes, attend globally. Images of other sizes are taken too.
        mixers: Other token mixers, as `Pyramid` takes them; then `mixer_args` are theirs.
        mixer_args: Arguments of other mixers; `cswin_args` makes those of cross-shaped ones among them.
        qkv_bias: Whether qkv projections have a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        **kwargs: Of `Pyramid`.

    Raises:
        ValueError: If `stripe_widths` has not one entry a stage.
    """
    if len(stripe_widths) != len(depths):
        raise ValueError(
            f"stripe_widths={tuple(stripe_widths)} must have one entry for each of the {len(depths)} stages"
        )

    def crossed(stage: int, block: int) -> dict[str, Any]:
        return {**cswin_args(stripe_widths, img_size, stage), "qkv_bias": qkv_bias, "qk_scale": qk_scale}

    return Pyramid(
        depths,
        [embed_dim * 2**i for i in range(len(depths))],
        num_heads,
        stem="overlap",
        stem_args={"padding": 2},
        downsample="conv",
        downsample_args={"bias": True},
        mixers=mixers or "cross_shaped",
        mixer_args=crossed if mixers is None else mixer_args,
        **kwargs,
    )


def cswin_args(stripe_widths: Sequence[int], img_size: int, stage: int) -> dict[str, Any]:
    """Stripes of the cross-shaped mixers of one stage: none in the last, nor where they would be as wide as the map."""
    is_global = stage == len(stripe_widths) - 1 or stripe_widths[stage] == img_size // 2 ** (stage + 2)
    return {"stripe_width": None if is_global else stripe_widths[stage]}


# The authors keep the projections in the block.
KEYS = KeyMap(
    "Microsoft CSWin",
    (
        (r"^stage1_conv_embed\.0\.", "stem.proj."),
        (r"^stage1_conv_embed\.2\.", "stem.norm."),
        (r"^merge(\d)\.conv\.", to_stage("down.reduction.")),
        (r"^merge(\d)\.norm\.", to_stage("down.norm.")),
        (r"^stage(\d)\.", to_stage("blocks.")),
        (r"^(stages\.\d\.blocks\.\d+)\.(qkv|proj)\.", r"\1.attn.\2."),
        (r"\.attns\.(\d)\.get_v\.", r".attn.lepe.\1."),
        (r"^head\.", "head.fc."),
    ),
)


def _variant(embed_dim: int, num_heads: tuple[int, ...], depths: tuple[int, ...], **more: Any) -> dict[str, Any]:
    return {"embed_dim": embed_dim, "depths": depths, "num_heads": num_heads, **more}


NARROW, DEEP = (2, 4, 8, 16), (2, 4, 32, 2)
AT_384: dict[str, Any] = {"img_size": 384, "stripe_widths": (1, 2, 12, 12)}
VARIANTS = {
    "va_cswin_tiny": _variant(64, NARROW, (1, 2, 21, 1)),
    "va_cswin_small": _variant(64, NARROW, DEEP),
    "va_cswin_base": _variant(96, (4, 8, 16, 32), DEEP),
    "va_cswin_base_384": _variant(96, (4, 8, 16, 32), DEEP, **AT_384),
    "va_cswin_large": _variant(144, (6, 12, 24, 24), DEEP),
    "va_cswin_large_384": _variant(144, (6, 12, 24, 24), DEEP, **AT_384),
}


def _row(reference: str, size: int = 224) -> Published:
    return Published(reference, ORIGIN, size=size, crop_pct=1.0 if size == 384 else 0.9, is_page=True)


WEIGHTS = {
    "va_cswin_tiny.in1k": _row("CSWin_64_12211_tiny_224"),
    "va_cswin_small.in1k": _row("CSWin_64_24322_small_224"),
    "va_cswin_base.in1k": _row("CSWin_96_24322_base_224"),
    "va_cswin_base_384.in1k": _row("CSWin_96_24322_base_384", 384),
    "va_cswin_large.in22k_ft_in1k": _row("CSWin_144_24322_large_224"),
    "va_cswin_large_384.in22k_ft_in1k": _row("CSWin_144_24322_large_384", 384),
}

MICRO = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (2, 2, 4, 4), "stripe_widths": (1, 3, 2, 2),
         "img_size": 64}  # fmt: skip
CSWIN = Family(
    "cswin", "CSWin Transformer", (PAPER,), "mit", ORIGIN, cswin, (KEYS,), "cswin", no_records,
    micros={"va_cswin_tiny": MICRO}, dense_args={"*": {"output_norms": True}},
)  # fmt: skip
register(__name__, CSWIN, VARIANTS, WEIGHTS)
