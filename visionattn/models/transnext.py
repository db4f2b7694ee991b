# SPDX-License-Identifier: Apache-2.0
"""TransNeXt: attention that is sharp around each pixel and coarse elsewhere, and gated MLPs with a convolution.

Paper: TransNeXt: Robust Foveal Visual Perception for Vision Transformers, arXiv 2311.17132. Weights: Apache-2.0.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from visionattn.layers import init_conv_fan_out

from ._checkpoint import KeyMap, to_stage
from ._pyramid import MixerArgs, Pyramid
from ._reference import translate
from ._registry import Dense, Family, Paper, Published, register

PAPER = Paper("TransNeXt: Robust Foveal Visual Perception for Vision Transformers", "2311.17132")
HUB = "https://huggingface.co/DaiShiResearch"
MODES = (None, "interpolate", "extrapolate")


def transnext(
    dims: Sequence[int] = (72, 144, 288, 576),
    depths: Sequence[int] = (2, 2, 15, 2),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    reductions: Sequence[int] = (8, 4, 2, 1),
    window_sizes: Sequence[int | None] | int = 3,
    pool_size: int | None = None,
    img_size: int = 224,
    pretrain_size: int | None = None,
    dense: str | None = None,
    mlp_ratio: float | Sequence[float] = (8, 8, 4, 4),
    mixers: str | Sequence[str | None | Sequence[str | None]] | None = None,
    mixer_args: MixerArgs | None = None,
    qkv_bias: bool = True,
    **kwargs: Any,
) -> Pyramid:
    """Pyramid of aggregated attention, global where nothing is averaged.

    Args:
        dims: Channels of each stage.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        reductions: Side of the cells of each stage that are averaged; 1 for global attention.
        window_sizes: Side of the window around each pixel; or one a stage, None where there is none.
        pool_size: Rows and columns of averages in all stages; None for as many as `reductions` gives.
        img_size: Side of the images. Images of other sizes are taken too.
        pretrain_size: Side of the images that position biases were trained with, by which offsets are measured; None
            for `img_size`.
        dense: What dense-prediction backbones do with images that are not of `img_size`: "interpolate" the position
            biases of that size, or "extrapolate" to others by computing them. None is the classifier, which
            extrapolates.
        mlp_ratio: Hidden width of the MLPs over the channels, before the gate takes its third; or one a stage.
        mixers: Other token mixers, as `Pyramid` takes them; then `mixer_args` are theirs.
        mixer_args: Arguments of other mixers.
        qkv_bias: Whether projections to queries, keys and values have a bias.
        **kwargs: Of `Pyramid`.

    Raises:
        ValueError: If `reductions` or `window_sizes` have not one entry a stage, `dense` is unknown, or an image size
            is not positive.
    """
    windows = [window_sizes] * len(depths) if isinstance(window_sizes, int) else list(window_sizes)
    for name, values in (("reductions", reductions), ("window_sizes", windows)):
        if len(values) != len(depths):
            raise ValueError(f"{name}={tuple(values)} must have one entry for each of the {len(depths)} stages")
    if dense not in MODES:
        raise ValueError(f"dense={dense!r} must be one of {MODES}")
    trained = img_size if pretrain_size is None else pretrain_size
    if img_size < 1 or trained < 1:
        raise ValueError(f"img_size={img_size} and pretrain_size={pretrain_size} must be positive")

    foveal = foveal_args(windows, reductions, pool_size, img_size, trained, dense, qkv_bias)
    model = Pyramid(
        depths,
        dims,
        num_heads,
        stem="overlap",
        downsample="conv",
        downsample_args={"bias": True},
        mixers=mixers or ["cosine_global" if reduction == 1 else "aggregated" for reduction in reductions],
        mixer_args=foveal if mixers is None else mixer_args,
        mlp_ratio=mlp_ratio,
        mlp="conv_glu",
        stage_norms=True,
        final_norm=False,
        norm_eps=1e-6,
        **kwargs,
    )
    model.apply(init_conv_fan_out)
    return model


def foveal_args(
    windows: Sequence[int | None],
    reductions: Sequence[int],
    pool_size: int | None,
    img_size: int,
    pretrain_size: int,
    dense: str | None,
    qkv_bias: bool,
) -> Callable[[int, int], dict[str, Any]]:
    """Arguments of the attention of a block, by its stage and its index there; the names are those of `transnext`."""

    def args_of(stage: int, block: int) -> dict[str, Any]:
        side, trained_side = (max(size // 2 ** (stage + 2), 1) for size in (img_size, pretrain_size))
        args = {"pretrained_size": trained_side, "map_size": side if dense == "interpolate" else None}
        args["qkv_bias"] = qkv_bias
        if reductions[stage] == 1:
            return {**args, "round_length": dense is not None}
        return {**args, "window_size": windows[stage], "reduction": reductions[stage], "pool_size": pool_size}

    return args_of


def _like_ours(tensor: Tensor, target: Tensor) -> Tensor:
    return tensor.reshape(target.shape) if tensor.numel() == target.numel() else tensor


AUTHORS = KeyMap(
    "TransNeXt",
    (
        (r"^patch_embed1\.", "stem."),
        (r"^patch_embed(\d)\.proj\.", to_stage("down.reduction.", 2)),
        (r"^patch_embed(\d)\.norm\.", to_stage("down.norm.", 2)),
        (r"^block(\d)\.", to_stage("blocks.")),
        (r"^norm(\d)\.", to_stage("norm.")),
        (r"\.attn\.cpb_fc1\.", ".attn.cpb_mlp.0."),
        (r"\.attn\.cpb_fc2\.", ".attn.cpb_mlp.2."),
        (r"\.attn\.relative_pos_bias_local$", ".attn.rpb"),
        (r"\.attn\.temperature$", ".attn.temperature", _like_ours),
        (r"\.attn\.query_embedding$", ".attn.query_embed", _like_ours),
        (r"\.attn\.learnable_tokens$", ".attn.tokens"),
        (r"\.attn\.learnable_bias$", ".attn.token_bias", _like_ours),
        (r"\.mlp\.dwconv\.dwconv\.", ".mlp.conv."),
        (r"^head\.", "head.fc."),
    ),
    # Some tools keep what the model derives from the image size.
    constants=(r"^relative_pos_index\d$", r"^relative_coords_table\d$"),
)


def _from_reference(record: Mapping[str, Any]) -> Pyramid:
    config = {name: value for name, value in record["config"].items() if name not in ("patch_size", "norm_eps")}
    extrapolates = config.pop("is_extrapolation", None)
    args = translate(config, {"depths": "depths", "embed_dims": "dims", "mlp_ratios": "mlp_ratio",
                              "img_size": "img_size", "sr_ratios": "reductions", "window_size": "window_sizes",
                              "fixed_pool_size": "pool_size", "pretrain_size": "pretrain_size"})  # fmt: skip
    args.pop("qk_scale")  # the reference has none
    if extrapolates is not None:
        args |= {"dense": "extrapolate" if extrapolates else "interpolate", "num_classes": 0}
    return transnext(**args)


MICRO_SIZE: dict[str, Any] = {"dims": (48, 96, 192, 384), "depths": (2, 2, 15, 2), "num_heads": (2, 4, 8, 16),
                              "drop_path_rate": 0.15}  # fmt: skip
TINY: dict[str, Any] = {"depths": (2, 2, 15, 2), "drop_path_rate": 0.25}
SMALL: dict[str, Any] = {"depths": (5, 5, 22, 5), "drop_path_rate": 0.45}
BASE: dict[str, Any] = {"dims": (96, 192, 384, 768), "depths": (5, 5, 23, 5), "num_heads": (4, 8, 16, 32),
                        "drop_path_rate": 0.6}  # fmt: skip
LARGE_IMAGES: dict[str, Any] = {"img_size": 384, "pretrain_size": 224}
VARIANTS = {
    "va_transnext_micro": MICRO_SIZE,
    "va_transnext_tiny": TINY,
    "va_transnext_small": SMALL,
    "va_transnext_base": BASE,
    "va_transnext_small_384": {**SMALL, **LARGE_IMAGES, "drop_path_rate": 0.7},
    "va_transnext_base_384": {**BASE, **LARGE_IMAGES, "drop_path_rate": 0.8},
    "va_transnext_micro_aaaa": {**MICRO_SIZE, "reductions": (16, 8, 4, 2), "img_size": 256},
}


def _row(reference: str, repository: str, top1: float, params_m: float, gflops: float, size: int = 224) -> Published:
    url = f"{HUB}/{repository}/resolve/main/{repository.replace('-', '_')}.pth?download=true"
    return Published(reference, url, top1, None, params_m, gflops, size)


WEIGHTS = {
    "va_transnext_micro.in1k": _row("transnext_micro", "transnext-micro-224-1k", 82.5, 12.8, 2.7),
    "va_transnext_tiny.in1k": _row("transnext_tiny", "transnext-tiny-224-1k", 84.0, 28.2, 5.7),
    "va_transnext_small.in1k": _row("transnext_small", "transnext-small-224-1k", 84.7, 49.7, 10.3),
    "va_transnext_base.in1k": _row("transnext_base", "transnext-base-224-1k", 84.8, 89.7, 18.4),
    "va_transnext_small_384.in1k": _row(
        "transnext_small_384", "transnext-small-384-1k-ft-1k", 86.0, 49.7, 32.1, size=384),
    "va_transnext_base_384.in1k": _row(
        "transnext_base_384", "transnext-base-384-1k-ft-1k", 86.2, 89.7, 56.3, size=384),
    "va_transnext_micro_aaaa.in1k": _row(
        "transnext_micro_AAAA", "transnext-micro-AAAA-256-1k", 82.6, 13.1, 3.3, size=256),
}  # fmt: skip


def _results(
    box: float, mask: float, single: float, multi: float, mask2former: float, *dino: Dense
) -> tuple[Dense, ...]:
    extrapolated = Dense("UPerNet 160k", miou=single, miou_multi=multi, note="several scales by extrapolation")
    return Dense("Mask R-CNN 1x", box, mask), *dino, extrapolated, Dense("Mask2Former 160k", miou=mask2former)


def _dino(scales: int, box: float) -> Dense:
    return Dense("DINO 12e", box, note=f"{scales} scales")


DENSE = {
    "va_transnext_tiny.in1k": _results(49.9, 44.6, 51.1, 51.7, 53.4, _dino(4, 55.1), _dino(5, 55.7)),
    "va_transnext_small.in1k": _results(51.1, 45.5, 52.2, 52.8, 54.1, _dino(5, 56.6)),
    "va_transnext_base.in1k": _results(51.7, 45.9, 53.0, 53.7, 54.7, _dino(5, 57.1)),
}

MICRO: dict[str, Any] = {"dims": (16, 24, 32, 48), "depths": (1, 1, 1, 1), "num_heads": (2, 3, 4, 6),
                         "reductions": (4, 2, 2, 1), "mlp_ratio": (2, 2, 3, 3), "img_size": 64}  # fmt: skip
TRANSNEXT = Family(
    "transnext", "TransNeXt", (PAPER,), "apache-2.0", "https://github.com/DaiShiResearch/TransNeXt", transnext,
    (AUTHORS,), "transnext", _from_reference, micros={"va_transnext_micro": MICRO},
    dense_args={"*": {"dense": "interpolate", "img_size": 512, "pretrain_size": 224}},
)  # fmt: skip
register(__name__, TRANSNEXT, VARIANTS, WEIGHTS, DENSE)
