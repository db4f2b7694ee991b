# SPDX-License-Identifier: Apache-2.0
"""LIT and LITv2: no attention in the two early stages, and token merging that learns where to read.

Papers: Less is More: Pay Less Attention in Vision Transformers, arXiv 2105.14217; Fast Vision Transformers with HiLo
Attention, arXiv 2205.13213. Weights: Apache-2.0.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from visionattn.layers import DeformableMerging, DepthwiseMlp, init_conv_fan_out

from ._checkpoint import KeyMap
from ._pyramid import MixerArgs, Pyramid
from ._reference import translate
from ._registry import Dense, Family, Paper, Published, register
from .swin import mirrored, patch_grid

PAPER_V1 = Paper("Less is More: Pay Less Attention in Vision Transformers", "2105.14217")
PAPER_V2 = Paper("Fast Vision Transformers with HiLo Attention", "2205.13213")


def _network(
    embed_dim: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    mixers: str | Sequence[str | None | Sequence[str | None]] | None,
    own_mixers: Sequence[str | None],
    **kwargs: Any,
) -> Pyramid:
    if len(depths) < 2:
        raise ValueError(f"depths={tuple(depths)} must have at least 2 stages: the first two have no attention")
    model = Pyramid(
        depths,
        [embed_dim * 2**i for i in range(len(depths))],
        num_heads,
        stem="patch",
        downsample="deformable_merge",
        mixers=list(own_mixers[: len(depths)]) if mixers is None else mixers,
        **kwargs,
    )
    for module in model.modules():
        if isinstance(module, DeformableMerging):
            module.init_weights()
        elif isinstance(module, DepthwiseMlp):
            init_conv_fan_out(module.conv)
    return model


def lit(
    embed_dim: int = 96,
    depths: Sequence[int] = (2, 2, 6, 2),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    img_size: int | tuple[int, int] = 224,
    qkv_bias: bool = True,
    mixers: str | Sequence[str | None | Sequence[str | None]] | None = None,
    mixer_args: MixerArgs | None = None,
    **kwargs: Any,
) -> Pyramid:
    """Pyramid of MLPs, then of global attention with a relative position bias.

    Args:
        embed_dim: Channels of the first stage; each next has twice as many.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        img_size: Side or `(height, width)` of the images that bias tables are made for. Images of other sizes are taken
            too.
        qkv_bias: Whether qkv projections have a bias.
        mixers: Other token mixers, as `Pyramid` takes them; then `mixer_args` are theirs.
        mixer_args: Arguments of other mixers.
        **kwargs: Of `Pyramid`.
    """
    grid = patch_grid(img_size, 4)

    def everywhere(stage: int, block: int) -> dict[str, Any]:
        return {"map_size": tuple(max(side // 2**stage, 1) for side in grid), "qkv_bias": qkv_bias}

    own = (None, None, *["global"] * len(depths))
    args = everywhere if mixers is None else mixer_args
    return _network(embed_dim, depths, num_heads, mixers, own, mixer_args=args, **kwargs)


def litv2(
    embed_dim: int = 96,
    depths: Sequence[int] = (2, 2, 6, 2),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    windows: Sequence[int] = (0, 0, 2, 1),
    alpha: float = 0.9,
    qkv_bias: bool = True,
    mlp: str = "depthwise",
    mixers: str | Sequence[str | None | Sequence[str | None]] | None = None,
    mixer_args: MixerArgs | None = None,
    **kwargs: Any,
) -> Pyramid:
    """Pyramid of MLPs with convolutions inside, joined by HiLo attention in the late stages.

    Args:
        embed_dim: Channels of the first stage; each next has twice as many.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        windows: Side of the windows of each stage's attention; those of the first two are not used.
        alpha: Share of the heads that see the whole map, averaged over windows.
        qkv_bias: Whether projections to queries, keys and values have a bias.
        mlp: Name of the MLPs, one of `visionattn.layers.MLPS`.
        mixers: Other token mixers, as `Pyramid` takes them; then `mixer_args` are theirs.
        mixer_args: Arguments of other mixers.
        **kwargs: Of `Pyramid`.

    Raises:
        ValueError: If `windows` has not one entry a stage.
    """
    if len(windows) != len(depths):
        raise ValueError(f"windows={tuple(windows)} must have one entry for each of the {len(depths)} stages")

    def divided(stage: int, block: int) -> dict[str, Any]:
        return {"window_size": windows[stage], "alpha": alpha, "qkv_bias": qkv_bias}

    own = (None, None, *["hilo"] * len(depths))
    args = divided if mixers is None else mixer_args
    return _network(embed_dim, depths, num_heads, mixers, own, mixer_args=args, mlp=mlp, **kwargs)


def pixels_side_by_side(weight: Tensor, target: Tensor) -> Tensor:
    """Weights `(out, in, 2, 2)` of a convolution as those of a linear layer of the pixels in turn."""
    return weight.permute(0, 2, 3, 1).flatten(1) if weight.ndim == 4 else weight


KEYS = (
    (r"^patch_embed\.", "stem."),
    (r"^layers\.(\d)\.downsample\.dconv\.conv_offset\.", r"stages.\1.down.offset."),
    (r"^layers\.(\d)\.downsample\.dconv\.weight$", r"stages.\1.down.reduction.weight", pixels_side_by_side),
    (r"^layers\.(\d)\.downsample\.dconv\.bias$", r"stages.\1.down.reduction.bias"),
    (r"^layers\.(\d)\.downsample\.norm_layer\.", r"stages.\1.down.norm.bn."),
    (r"^layers\.", "stages."),
    (r"^norm(\d)\.", r"output_norms.\1."),
    (r"^head\.", "head.fc."),
)
V1 = KeyMap(
    "LIT", ((r"relative_position_bias_table$", "rpb", mirrored), *KEYS), constants=("relative_position_index$",)
)
V2 = KeyMap(
    "LITv2",
    (
        (r"\.mlp\.dwconv\.dwconv\.", ".mlp.conv."),
        (r"\.attn\.h_", ".attn.high_"),
        (r"\.attn\.l_", ".attn.low_"),
        *KEYS,
    ),
)


def _from_reference(version: int, record: Mapping[str, Any]) -> Pyramid | None:
    config = dict(record["config"])
    if "embed_dims" in config:  # LIT-Ti, which is another network
        return None
    is_dense = "num_classes" not in config
    # The dense backbones' tables are made for one size, whatever the argument says.
    detects = not any(name.startswith("norm0.") for name, _, _ in record["state"])
    for name in ("pretrain_img_size", "patch_size", *(["img_size"] if version == 2 else [])):
        config.pop(name, None)
    renamed = {"local_ws": "windows", "alpha": "alpha"} if version == 2 else {"img_size": "img_size"}
    args = translate(config, {"depths": "depths", **renamed})
    args.pop("qk_scale")
    if is_dense:
        args |= {"output_norms": tuple(range(int(detects), len(args["depths"]))), "num_classes": 0}
        args |= {"img_size": 800 if detects else 512} if version == 1 else {}
    return (lit if version == 1 else litv2)(**args)


SMALL, MEDIUM, BASE = (
    {"depths": (2, 2, 6, 2), "drop_path_rate": 0.2},
    {"depths": (2, 2, 18, 2), "drop_path_rate": 0.3},
    {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32), "drop_path_rate": 0.5},
)
ALPHAS = {"0": (3.97, 81.16), "0.2": (3.88, 81.89), "0.4": (3.82, 81.81), "0.5": (3.77, 81.88), "0.7": (3.74, 81.94),
          "0.9": (3.73, 82.03), "1": (3.70, 81.89)}  # fmt: skip
V1_VARIANTS = {"va_lit_small": SMALL, "va_lit_medium": MEDIUM, "va_lit_base": BASE}
V2_VARIANTS = {"va_litv2_small": SMALL, "va_litv2_medium": MEDIUM, "va_litv2_base": BASE}


def _row(model: str, url: str, *figures: float, **more: Any) -> Published:
    repository, file = ("LIT", url) if url.startswith("v1.0/lit_") else ("LITv2", url)
    page = f"https://github.com/ziplab/{repository}/releases/download/{file}.pth"
    return Published(model, page, figures[0], None, *figures[1:], **more)


COUNTED = "The published parameters are fewer than those of the published code"
V1_WEIGHTS = {
    "va_lit_small.in1k": _row("lit_small", "v1.0/lit_s", 81.5, 27, 4.1),
    "va_lit_medium.in1k": _row("lit_medium", "v1.0/lit_m", 83.0, 48, 8.6, params_differ=COUNTED),
    "va_lit_base.in1k": _row("lit_base", "v1.0/lit_b", 83.4, 86, 15.0, params_differ=COUNTED),
}
V2_WEIGHTS = {
    "va_litv2_small.in1k": _row("litv2_small", "v1.0/litv2_s", 82.0, 28, 3.7),
    "va_litv2_medium.in1k": _row("litv2_medium", "v1.0/litv2_m", 83.3, 49, 7.5),
    "va_litv2_base.in1k": _row("litv2_base", "v1.0/litv2_b", 83.6, 87, 13.2),
    "va_litv2_base.in1k_384": _row("litv2_base_384", "v1.0/litv2_b_384", 84.7, 87, 39.7, size=384, crop_pct=1.0),
    **{
        f"va_litv2_small.in1k_alpha{alpha.replace('.', '')}": _row(
            f"litv2_small_alpha_{alpha}", f"v1.1/alpha_{alpha}", top1, 28, gflops, args={"alpha": float(alpha)}
        )
        for alpha, (gflops, top1) in ALPHAS.items()
    },
}


def _results(retina: float, box: float, mask: float, miou: float) -> tuple[Dense, ...]:
    return Dense("RetinaNet 1x", retina), Dense("Mask R-CNN 1x", box, mask), Dense("Semantic FPN 80k", miou=miou)


V1_DENSE = {"va_lit_small.in1k": _results(41.6, 42.9, 39.6, 41.7)}
V2_DENSE = {
    "va_litv2_small.in1k": _results(44.0, 44.9, 40.8, 44.3),
    "va_litv2_medium.in1k": _results(46.0, 46.8, 42.3, 45.7),
    "va_litv2_base.in1k": _results(46.7, 47.3, 42.6, 47.2),
}

MICRO = {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}
MICRO_V2 = {"embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 6, 8), "windows": (0, 0, 2, 1)}
LIT = Family(
    "lit", "LIT", (PAPER_V1,), "apache-2.0", "https://github.com/ziplab/LIT", lit, (V1,), "lit",
    partial(_from_reference, 1), micros={"va_lit_small": {**MICRO, "img_size": 64}},
    dense_args={"*": {"output_norms": True, "img_size": 512}},
)  # fmt: skip
LITV2 = Family(
    "litv2", "LITv2", (PAPER_V2,), "apache-2.0", "https://github.com/ziplab/LITv2", litv2, (V2,), "litv2",
    partial(_from_reference, 2), micros={"va_litv2_small": MICRO_V2}, dense_args={"*": {"output_norms": True}},
)  # fmt: skip
register(__name__, LIT, V1_VARIANTS, V1_WEIGHTS, V1_DENSE)
register(__name__, LITV2, V2_VARIANTS, V2_WEIGHTS, V2_DENSE)
