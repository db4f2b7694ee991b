# SPDX-License-Identifier: Apache-2.0
"""PVT v2: a pyramid of attention to a summary of the map, with overlapping patches and convolutions in the MLPs.

Papers: PVT v2: Improved Baselines with Pyramid Vision Transformer, arXiv 2106.13797. Weights: Apache-2.0.
"""

from collections.abc import Sequence
from typing import Any

from visionattn.layers import init_conv_fan_out

from ._checkpoint import KeyMap, to_stage
from ._pyramid import MixerArgs, Pyramid
from ._reference import no_records
from ._registry import Family, Paper, Published, register

PAPER = Paper("PVT v2: Improved Baselines with Pyramid Vision Transformer", "2106.13797")
RELEASES = "https://github.com/whai362/PVT/releases/download/v2"


def pvtv2(
    depths: Sequence[int] = (3, 4, 6, 3),
    dims: Sequence[int] = (64, 128, 320, 512),
    num_heads: Sequence[int] = (1, 2, 5, 8),
    reductions: Sequence[int] = (8, 4, 2, 1),
    linear: bool = False,
    mixers: str | Sequence[str | Sequence[str]] | None = None,
    mixer_args: MixerArgs | None = None,
    qkv_bias: bool = True,
    **kwargs: Any,
) -> Pyramid:
    """Pyramid of spatially reduced attention with overlapping patches.

    Args:
        depths: Blocks of each stage.
        dims: Channels of each stage.
        num_heads: Heads of each stage.
        reductions: Side of the patches of each stage that keys and values summarise.
        linear: Summarise every map by 7x7 averages instead, and put a ReLU into the MLPs.
        mixers: Other token mixers, as `Pyramid` takes them; then `mixer_args` are theirs.
        mixer_args: Arguments of other mixers.
        qkv_bias: Whether projections to queries, keys and values have a bias.
        **kwargs: Of `Pyramid`.

    Raises:
        ValueError: If `reductions` has not one entry a stage.
    """
    if len(reductions) != len(depths):
        raise ValueError(f"reductions={tuple(reductions)} must have one entry for each of the {len(depths)} stages")

    def reduced(stage: int, block: int) -> dict[str, Any]:
        return {"qkv_bias": qkv_bias} if linear else {"qkv_bias": qkv_bias, "reduction": reductions[stage]}

    model = Pyramid(
        depths,
        dims,
        num_heads,
        stem="overlap",
        downsample="conv",
        downsample_args={"bias": True},
        mixers=mixers or ("pooled" if linear else "spatial_reduction"),
        mixer_args=reduced if mixers is None else mixer_args,
        mlp="depthwise_relu" if linear else "depthwise",
        stage_norms=True,
        final_norm=False,
        norm_eps=1e-6,
        **kwargs,
    )
    model.apply(init_conv_fan_out)
    return model


AUTHORS = KeyMap(
    "PVT v2",
    (
        (r"^patch_embed1\.", "stem."),
        (r"^patch_embed(\d)\.proj\.", to_stage("down.reduction.", 2)),
        (r"^patch_embed(\d)\.norm\.", to_stage("down.norm.", 2)),
        (r"^block(\d)\.", to_stage("blocks.")),
        (r"^norm(\d)\.", to_stage("norm.")),
        (r"\.mlp\.dwconv\.dwconv\.", ".mlp.conv."),
        (r"^head\.", "head.fc."),
    ),
)
TIMM = KeyMap(
    "timm",
    (
        (r"^patch_embed\.", "stem."),
        (r"^stages\.(\d)\.downsample\.proj\.", to_stage("down.reduction.")),
        (r"^stages\.(\d)\.downsample\.norm\.", to_stage("down.norm.")),
        (r"\.mlp\.dwconv\.", ".mlp.conv."),
        (r"^head\.", "head.fc."),
    ),
)

WIDE, TWO = (8, 8, 4, 4), (2, 2, 2, 2)
VARIANTS: dict[str, dict[str, Any]] = {
    "va_pvtv2_b0": {"depths": TWO, "dims": (32, 64, 160, 256), "mlp_ratio": WIDE},
    "va_pvtv2_b1": {"depths": TWO, "mlp_ratio": WIDE},
    "va_pvtv2_b2": {"depths": (3, 4, 6, 3), "mlp_ratio": WIDE},
    "va_pvtv2_b2_linear": {"depths": (3, 4, 6, 3), "mlp_ratio": WIDE, "linear": True},
    "va_pvtv2_b3": {"depths": (3, 4, 18, 3), "mlp_ratio": WIDE},
    "va_pvtv2_b4": {"depths": (3, 8, 27, 3), "mlp_ratio": WIDE},
    "va_pvtv2_b5": {"depths": (3, 6, 40, 3), "mlp_ratio": (4, 4, 4, 4)},
}
FILES = {name: name.removeprefix("va_").replace("pvtv2", "pvt_v2").replace("linear", "li") for name in VARIANTS}
WEIGHTS = {
    f"{name}.in1k": Published(file, f"{RELEASES}/{file}.pth", crop_pct=0.9, hub=f"timm/{file}.in1k")
    for name, file in FILES.items()
}

MICRO = {"depths": (1, 2, 1, 1), "dims": (16, 16, 24, 32), "num_heads": (1, 2, 3, 4), "reductions": (4, 2, 2, 1),
         "mlp_ratio": (2, 2, 3, 3)}  # fmt: skip
PVTV2 = Family(
    "pvtv2", "PVT v2", (PAPER,), "apache-2.0", "https://github.com/whai362/PVT", pvtv2, (AUTHORS, TIMM), "pvtv2",
    no_records, micros={"va_pvtv2_b0": MICRO, "va_pvtv2_b2_linear": MICRO},
)  # fmt: skip
register(__name__, PVTV2, VARIANTS, WEIGHTS)
