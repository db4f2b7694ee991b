# SPDX-License-Identifier: Apache-2.0
"""Flowformer: a pyramid of attention that conserves flows, of linear cost in every stage.

Paper: Flowformer: Linearizing Transformers with Conservation Flows, arXiv 2202.06258. Weights: MIT.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import nn

from visionattn.layers import Block

from ._checkpoint import KeyMap
from ._pyramid import MixerArgs, Pyramid, Stage
from ._reference import translate
from ._registry import Family, Paper, Published, register
from .swin import patch_grid, position_planes

PAPER = Paper("Flowformer: Linearizing Transformers with Conservation Flows", "2202.06258")


def flowformer(
    depths: Sequence[int] = (3, 3, 10, 3),
    dims: Sequence[int] = (96, 192, 384, 768),
    num_heads: int | Sequence[int] = 12,
    img_size: int | tuple[int, int] = 224,
    layer_scale: float | None = 1e-5,
    qkv_bias: bool = True,
    mixers: str | Sequence[str | Sequence[str]] | None = None,
    mixer_args: MixerArgs | None = None,
    **kwargs: Any,
) -> Pyramid:
    """Pyramid of flow attention; only its MLPs have layer scale.

    Args:
        depths: Blocks of each stage.
        dims: Channels of each stage.
        num_heads: Heads of all stages, or of each.
        img_size: Side or `(height, width)` of the images that the position table is made for. Images of other sizes are
            taken too.
        layer_scale: Initial value of per-channel factors on the MLPs; None for no factors.
        qkv_bias: Whether qkv projections have a bias.
        mixers: Other token mixers, as `Pyramid` takes them; then `mixer_args` are theirs.
        mixer_args: Arguments of other mixers.
        **kwargs: Of `Pyramid`.
    """
    grid = patch_grid(img_size, 4)
    model = Pyramid(
        depths,
        dims,
        [num_heads] * len(depths) if isinstance(num_heads, int) else num_heads,
        stem="patch",
        stem_args={"norm": False},
        downsample="patch",
        downsample_args={"norm": False},
        mixers=mixers or "flow",
        mixer_args={"qkv_bias": qkv_bias} if mixers is None else mixer_args,
        layer_scale=layer_scale,
        position_size=grid,
        norm_eps=1e-6,
        **kwargs,
    )
    for stage in model.stages:
        for block in cast(Stage, stage).blocks:
            cast(Block, block).scale1 = nn.Identity()
    return model


KEYS = (
    (r"^patch_embed\.0\.", "stem."),
    (r"^patch_embed\.(\d)\.", lambda match: f"stages.{int(match[1]) - 1}.down."),
    (r"^pos_embed$", "pos_embed.table", position_planes),
    (r"^blocks\.(\d+)\.(\d+)\.gamma$", r"blocks.\1.\2.scale2.gamma"),
    (r"^blocks\.(\d+)\.", r"stages.\1.blocks."),
    (r"^head\.", "head.fc."),
)


def _from_reference(record: Mapping[str, Any]) -> Pyramid:
    config = dict(record["config"])
    ratios = config.pop("mlp_ratio")
    if config.pop("norm_eps", 1e-6) != 1e-6:
        raise ValueError(f"norm_eps={record['config']['norm_eps']} must be 1e-6")
    args = translate(config, {"img_size": "img_size", "embed_dim": "dims", "depth": "depths",
                              "init_values": "layer_scale"})  # fmt: skip
    args.pop("qk_scale"), args.pop("patch_size", None)
    return flowformer(mlp_ratio=ratios, **args)


VARIANTS: dict[str, dict[str, Any]] = {"va_flowformer": {"depths": (3, 3, 10, 3), "drop_path_rate": 0.2}}
COUNTED = "The published parameters and multiply-adds are fewer than those of the published code"
WEIGHTS = {
    "va_flowformer.in1k": Published(
        "flowformer", "https://cloud.tsinghua.edu.cn/d/82d93375f97f4ca58886/", 80.6, 94.9, 41, 6.3, is_page=True,
        note="The weights are in a folder that a browser shows",
        params_differ=COUNTED, gflops_differ=COUNTED,
    ),
}  # fmt: skip

MICRO: dict[str, Any] = {"depths": (1, 2, 1), "dims": (16, 24, 32), "num_heads": 4, "mlp_ratio": 2.0, "img_size": 64}
FLOWFORMER = Family(
    "flowformer", "Flowformer", (PAPER,), "mit", "https://github.com/thuml/Flowformer", flowformer,
    (KeyMap("Flowformer", KEYS),), "flowformer_vision", _from_reference, micros={"va_flowformer": MICRO},
)  # fmt: skip
register(__name__, FLOWFORMER, VARIANTS, WEIGHTS)
