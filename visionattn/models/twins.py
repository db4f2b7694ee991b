# SPDX-License-Identifier: Apache-2.0
"""Twins: PCPVT, a pyramid of global attention to summarised maps, and SVT, where every second block is local instead.

Positions are encoded by a convolution after the first block of each stage, so images may have any size.

Paper: Twins: Revisiting the Design of Spatial Attention in Vision Transformers, arXiv 2104.13840. Weights: Apache-2.0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from visionattn.layers import init_conv_fan_out

from ._checkpoint import KeyMap, to_stage
from ._pyramid import Pyramid
from ._reference import source_file, translate
from ._registry import Dense, Family, Paper, Published, register

PAPER = Paper("Twins: Revisiting the Design of Spatial Attention in Vision Transformers", "2104.13840")


def twins(
    depths: Sequence[int] = (3, 4, 6, 3),
    dims: Sequence[int] = (64, 128, 320, 512),
    num_heads: Sequence[int] = (1, 2, 5, 8),
    reductions: Sequence[int] = (8, 4, 2, 1),
    window_sizes: Sequence[int] | None = None,
    mask_two_sided_padding: bool = False,
    patch_size: int = 4,
    qkv_bias: bool = True,
    qk_scale: float | None = None,
    **kwargs: Any,
) -> Pyramid:
    """Pyramid of spatially reduced attention, in turn with window attention where there are windows.

    Args:
        depths: Blocks of each stage.
        dims: Channels of each stage.
        num_heads: Heads of each stage.
        reductions: Side of the patches of each stage that keys and values summarise.
        window_sizes: Side of each stage's windows, in which blocks 0, 2, ... attend (SVT); None for no such blocks.
        mask_two_sided_padding: Hide the tokens that fill up the windows where a map is filled up along both axes, as
            the authors' segmentation backbone does; elsewhere and in the other backbones they are seen.
        patch_size: Side of a patch of the image.
        qkv_bias: Whether projections to queries, keys and values have a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        **kwargs: Of `Pyramid`; `stage_norms=True` is the dense SVT.

    Raises:
        ValueError: If `reductions` or `window_sizes` has not one entry a stage.
    """
    for name, values in (("reductions", reductions), ("window_sizes", window_sizes)):
        if values is not None and len(values) != len(depths):
            raise ValueError(f"{name}={tuple(values)} must have one entry for each of the {len(depths)} stages")
    common = {"qkv_bias": qkv_bias, "qk_scale": qk_scale}

    def is_local(block: int) -> bool:
        return window_sizes is not None and block % 2 == 0

    def mixer_args(stage: int, block: int) -> dict[str, Any]:
        if window_sizes is None or not is_local(block):
            return {**common, "reduction": reductions[stage]}
        masked = {"mask_two_sided_padding": mask_two_sided_padding}
        return {**common, "window_size": window_sizes[stage], "relative_bias": False, **masked}

    model = Pyramid(
        depths,
        dims,
        num_heads,
        stem="patch",
        stem_args={"patch_size": patch_size, "drop_ragged": True},
        downsample="patch",
        mixers=[["window" if is_local(j) else "spatial_reduction" for j in range(depth)] for depth in depths],
        mixer_args=mixer_args,
        conditional_position=True,
        norm_eps=1e-6,
        **kwargs,
    )
    model.apply(init_conv_fan_out)
    return model


# timm's names are the authors'. Only the dense SVT has norms at the end of stages, and its files come without them.
KEYS = KeyMap(
    "Meituan Twins",
    (
        (r"^patch_embeds\.0\.", "stem."),
        (r"^patch_embeds\.(\d+)\.", to_stage("down.")),
        (r"^blocks\.(\d+)\.", r"stages.\1.blocks."),
        (r"^pos_block\.(\d+)\.proj\.0\.", r"stages.\1.position.conv."),
        (r"^norm_list\.(\d+)\.", r"stages.\1.norm."),
        (r"^head\.", "head.fc."),
    ),
    optional=(r"^stages\.\d+\.norm\.",),
)

NAMES = {"depths": "depths", "embed_dims": "dims", "mlp_ratios": "mlp_ratio", "sr_ratios": "reductions",
         "wss": "window_sizes", "extra_norm": "stage_norms"}  # fmt: skip
# `norm_layer` is always LayerNorm of eps 1e-6; `F4` and `strides` choose among outputs, or do nothing.
IGNORED = ("class_", "img_size", "norm_layer", "F4", "strides")


def _from_reference(record: Mapping[str, Any]) -> Pyramid:
    config = {name: value for name, value in record["config"].items() if name not in IGNORED}
    masked = source_file(record).parts[0] == "segmentation" and "wss" in config
    return twins(**translate(config, NAMES), mask_two_sided_padding=masked)


def _pcpvt(*depths: int) -> dict[str, Any]:
    return {"depths": depths, "mlp_ratio": (8, 8, 4, 4)}


def _svt(*depths: int, dim: int, heads: int) -> dict[str, Any]:
    dims, num_heads = (tuple(n * 2**i for i in range(4)) for n in (dim, heads))
    return {"depths": depths, "dims": dims, "num_heads": num_heads, "window_sizes": (7, 7, 7, 7)}


VARIANTS = {
    "va_twins_pcpvt_small": _pcpvt(3, 4, 6, 3),
    "va_twins_pcpvt_base": _pcpvt(3, 4, 18, 3),
    "va_twins_pcpvt_large": _pcpvt(3, 8, 27, 3),
    "va_twins_svt_small": _svt(2, 2, 10, 4, dim=64, heads=2),
    "va_twins_svt_base": _svt(2, 2, 18, 2, dim=96, heads=3),
    "va_twins_svt_large": _svt(2, 2, 18, 2, dim=128, heads=4),
}


def _row(reference: str, timm_name: str, file: str, top1: float, params: float, gflops: float) -> Published:
    url = f"https://drive.google.com/file/d/{file}/view?usp=sharing"
    hub = f"timm/twins_{timm_name}.in1k"
    return Published(reference, url, top1, None, params, gflops, is_page=True, hub=hub)


WEIGHTS = {
    "va_twins_pcpvt_small.in1k": _row(
        "pcpvt_small_v0", "pcpvt_small", "1TWIx_8M-4y6UOKtbCgm1v-UVQ-_lYe6X", 81.2, 24.1, 3.7),
    "va_twins_pcpvt_base.in1k": _row(
        "pcpvt_base_v0", "pcpvt_base", "1BsD3ZRivvPsHoZB1AX-tbirFLtCln8ky", 82.7, 43.8, 6.4),
    "va_twins_pcpvt_large.in1k": _row(
        "pcpvt_large_v0", "pcpvt_large", "17xZXOWEcSGs0quBmMEkBYCxjPRYH-L45", 83.1, 60.9, 9.5),
    "va_twins_svt_small.in1k": _row("alt_gvt_small", "svt_small", "131SVOphM_-SaBytf4kWjo3ony5hpOt4S", 81.7, 24, 2.8),
    "va_twins_svt_base.in1k": _row("alt_gvt_base", "svt_base", "1s83To8xgDWY6Ad8VBP3Nx9gqY709rrGu", 83.2, 56, 8.3),
    "va_twins_svt_large.in1k": _row(
        "alt_gvt_large", "svt_large", "1um39wxIaicmOquP2fr_SiZdxNCUou8w-", 83.7, 99.2, 14.8),
}  # fmt: skip

MICRO = {"depths": (1, 2, 2, 1), "dims": (16, 16, 24, 32), "num_heads": (1, 2, 3, 4), "reductions": (4, 2, 2, 1),
         "mlp_ratio": (2, 2, 3, 3)}  # fmt: skip
TWINS = Family(
    "twins", "Twins", (PAPER,), "apache-2.0", "https://github.com/Meituan-AutoML/Twins", twins, (KEYS,), "twins",
    _from_reference,
    micros={"va_twins_pcpvt_small": MICRO, "va_twins_svt_small": {**MICRO, "window_sizes": (3, 3, 3, 2)}},
    counts_attention=False, dense_args={"va_twins_svt_*": {"stage_norms": True}},
)  # fmt: skip
UPERNET = {
    "pcpvt_small": (46.2, 47.5),
    "pcpvt_base": (47.1, 48.4),
    "pcpvt_large": (48.6, 49.8),
    "svt_small": (46.2, 47.1),
    "svt_base": (47.4, 48.9),
    "svt_large": (48.8, 50.2),
}
DENSE = {
    f"va_twins_{size}.in1k": (Dense("UPerNet 160k", miou=single, miou_multi=multi),)
    for size, (single, multi) in UPERNET.items()
}
register(__name__, TWINS, VARIANTS, WEIGHTS, DENSE)
