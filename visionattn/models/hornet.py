# SPDX-License-Identifier: Apache-2.0
"""HorNet: a pyramid of recursive gated convolutions.

Paper: HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions, arXiv 2207.14284.
Weights: MIT.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from visionattn.layers import init_conv

from ._checkpoint import KeyMap, pointwise, to_stage
from ._pyramid import CONVNEXT, MixerArgs, Pyramid
from ._registry import Dense, Family, Paper, Published, register

PAPER = Paper("HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions", "2207.14284")
FilterSizes = Sequence[tuple[int, int] | None]


def hornet(
    depths: Sequence[int] = (2, 3, 18, 2),
    embed_dim: int = 64,
    orders: Sequence[int] = (2, 3, 4, 5),
    kernel_size: int = 7,
    filter_sizes: FilterSizes | None = None,
    scale: float = 1 / 3,
    layer_scale: float | None = 1e-6,
    num_heads: Sequence[int] | None = None,
    mixers: str | Sequence[str | Sequence[str]] | None = None,
    mixer_args: MixerArgs | None = None,
    **kwargs: Any,
) -> Pyramid:
    """Pyramid of recursive gated convolutions whose order rises from stage to stage.

    Args:
        depths: Blocks of each stage.
        embed_dim: Channels of the first stage; they double from one to the next.
        orders: Order of the convolutions of each stage.
        kernel_size: Side of the depth-wise convolutions.
        filter_sizes: For each stage the `(height, width)` of filters in the Fourier domain, None for convolutions.
        scale: Factor of the depth-wise convolutions' output.
        layer_scale: Initial value of per-channel factors on the branches; None for no factors.
        num_heads: Heads of other token mixers; None for 1.
        mixers: Other token mixers, as `Pyramid` takes them; then `mixer_args` are theirs.
        mixer_args: Arguments of other mixers.
        **kwargs: Of `Pyramid`.

    Raises:
        ValueError: If the lengths of `depths`, `orders` and `filter_sizes` differ.
    """
    filters = [None] * len(depths) if filter_sizes is None else list(filter_sizes)
    if not len(depths) == len(orders) == len(filters):
        raise ValueError(f"orders={orders} and filter_sizes={filters} must have one entry for each of {depths}")

    def gated(stage: int, block: int) -> Mapping[str, Any]:
        own = {"order": orders[stage], "kernel_size": kernel_size, "filter_size": filters[stage]}
        return {**own, "scale": scale}

    model = Pyramid(
        depths,
        [embed_dim * 2**i for i in range(len(depths))],
        num_heads or [1] * len(depths),
        mixers=mixers or "recursive_gated",
        mixer_args=gated if mixers is None else mixer_args,
        layer_scale=layer_scale,
        head="norm",
        **{**CONVNEXT, **kwargs},
    )
    model.apply(init_conv)
    return model


AUTHORS = KeyMap(
    "HorNet",
    (
        (r"^downsample_layers\.0\.0\.", "stem.proj."),
        (r"^downsample_layers\.0\.1\.", "stem.norm."),
        (r"^downsample_layers\.(\d)\.0\.", to_stage("down.norm.")),
        (r"^downsample_layers\.(\d)\.1\.", to_stage("down.proj.")),
        (r"^stages\.(\d)\.(\d+\.)", r"stages.\1.blocks.\2"),
        (r"\.gamma([12])$", r".scale\1.gamma"),
        (r"\.gnconv\.(?:proj_in|proj_out|pws\.\d+)\.weight$", r"\g<0>", pointwise),
        (r"\.gnconv\.", ".attn."),
        (r"\.attn\.proj_out\.", ".attn.proj."),
        (r"\.attn\.pws\.", ".attn.widen."),
        (r"\.dwconv\.complex_weight$", ".filter.filter"),
        (r"\.dwconv\.dw\.", ".filter.conv."),
        (r"\.dwconv\.(pre_norm|post_norm)\.", r".filter.\1."),
        (r"\.dwconv\.", ".conv."),
        (r"\.pwconv([12])\.", r".mlp.fc\1."),
        (r"^norm(\d)\.", r"output_norms.\1."),
        (r"^head\.", "head.fc."),
        (r"^norm\.", "head.norm."),
    ),
)


def _from_reference(record: Mapping[str, Any]) -> Pyramid:
    config = dict(record["config"])
    filters = {int(stage): tuple(size) for stage, size in config["global_filter"].items()}
    scale = config["layer_scale_init_value"]
    args = {
        "depths": config["depths"],
        "embed_dim": config["base_dim"],
        "orders": config["orders"],
        "scale": config["scale"],
        "filter_sizes": [filters.get(i) for i in range(len(config["depths"]))],
        "layer_scale": scale if scale > 0 else None,
        "drop_path_rate": config.get("drop_path_rate") or 0.0,
    }
    if config["num_classes"] is not None:
        return hornet(**args, num_classes=config["num_classes"])
    model = hornet(**args, output_norms=True, num_classes=0)
    model.reset_classifier(0, "")
    return model


def _variant(dim: int, rate: float, filters: FilterSizes | None) -> dict[str, Any]:
    return {"depths": (2, 3, 18, 2), "embed_dim": dim, "drop_path_rate": rate, "filter_sizes": filters}


GF, GF_LARGE = (None, None, (14, 8), (7, 4)), (None, None, (24, 13), (12, 7))
VARIANTS = {
    f"va_hornet_{size}_{kind}": _variant(dim, rate, filters)
    for size, dim, rate in (("tiny", 64, 0.2), ("small", 96, 0.4), ("base", 128, 0.5), ("large", 192, 0.2))
    for kind, filters in (("7x7", None), ("gf", GF))
}
VARIANTS["va_hornet_base_gf_384"] = _variant(128, 0.0, GF_LARGE)
VARIANTS["va_hornet_large_gf_384"] = _variant(192, 0.4, GF_LARGE)

PRUNED = (
    "The weights pre-trained on ImageNet-22K have a head for about 10,460 of its classes, whose number the authors do "
    "not give; num_classes=0 loads all but the head"
)
COUNTED = "The published parameters are those with the head for ImageNet-22K"


def _row(model: str, file: str, *figures: Any, **more: Any) -> Published:
    url = f"https://cloud.tsinghua.edu.cn/f/{file}/?dl=1" if file else ""
    return Published(f"hornet_{model}", url, figures[0], None, *figures[1:], **more)


WEIGHTS = {
    "va_hornet_tiny_7x7.in1k": _row("tiny_7x7", "bac9690c72944d19aca1", 82.8, 22, 4.0),
    "va_hornet_tiny_gf.in1k": _row("tiny_gf", "460e759c82324ea6bfa3", 83.0, 23, 3.9),
    "va_hornet_small_7x7.in1k": _row("small_7x7", "8ef64277da0e469ea857", 83.8, 50, 8.8),
    "va_hornet_small_gf.in1k": _row("small_gf", "959603ca287d4c09ad49", 84.0, 50, 8.7),
    "va_hornet_base_7x7.in1k": _row("base_7x7", "13a748487711492e9704", 84.2, 87, 15.6),
    "va_hornet_base_gf.in1k": _row("base_gf", "c212d1d8a3914b47a5c1", 84.3, 88, 15.5),
    "va_hornet_large_7x7.in22k": _row(
        "large_7x7", "c2fc23caae084a3aa73d", None, 209, 34.8, params_differ=COUNTED, note=PRUNED),
    "va_hornet_large_gf.in22k": _row(
        "large_gf", "8600206ebdfa485f98d0", None, 211, 34.7, params_differ=COUNTED, note=PRUNED),
    "va_hornet_base_gf_384.untrained": _row("base_gf_img384", "", None, size=384, crop_pct=1.0),
    "va_hornet_large_gf_384.in22k": _row(
        "large_gf_img384", "eec48d5eca5a48d98fd2", None, 216, 101.8, size=384, crop_pct=1.0, params_differ=COUNTED,
        note=PRUNED),
}  # fmt: skip


def _results(*figures: float) -> tuple[Dense, ...]:
    box, mask, miou, multi = figures
    return Dense("Cascade Mask R-CNN 3x", box, mask), Dense("UPerNet 160k", miou=miou, miou_multi=multi)


DENSE = {
    "va_hornet_tiny_7x7.in1k": _results(51.7, 44.8, 48.1, 48.9),
    "va_hornet_tiny_gf.in1k": _results(52.4, 45.6, 49.2, 49.3),
    "va_hornet_small_7x7.in1k": _results(52.7, 45.6, 49.2, 49.8),
    "va_hornet_small_gf.in1k": _results(53.3, 46.3, 50.0, 50.5),
    "va_hornet_base_7x7.in1k": _results(53.3, 46.1, 50.0, 50.5),
    "va_hornet_base_gf.in1k": _results(54.0, 46.9, 50.5, 50.9),
    "va_hornet_large_7x7.in22k": _results(55.4, 48.0, 54.1, 54.5),
    "va_hornet_large_gf.in22k": _results(56.0, 48.6, 55.0, 55.2),
}

MICRO = {"depths": (1, 1, 2, 1), "embed_dim": 16, "orders": (2, 3, 4, 5)}
MICRO_GF = {**MICRO, "filter_sizes": (None, (6, 4), (4, 3), (2, 2))}
HORNET = Family(
    "hornet", "HorNet", (PAPER,), "mit", "https://github.com/raoyongming/HorNet", hornet, (AUTHORS,), "hornet",
    _from_reference,
    micros={"va_hornet_tiny_7x7": MICRO, "va_hornet_tiny_gf": MICRO_GF}, dense_args={"*": {"output_norms": True}},
)  # fmt: skip
register(__name__, HORNET, VARIANTS, WEIGHTS, DENSE)
