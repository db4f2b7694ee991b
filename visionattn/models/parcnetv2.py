# SPDX-License-Identifier: Apache-2.0
"""ParCNetV2: a pyramid of convolutions longer than the map, gated by their input.

Paper: ParCNetV2: Oversized Kernel with Enhanced Attention, arXiv 2211.07157.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from visionattn.layers import init_conv

from ._checkpoint import KeyMap, pointwise, to_stage
from ._pyramid import MixerArgs, Pyramid
from ._registry import Family, Paper, Published, register

PAPER = Paper("ParCNetV2: Oversized Kernel with Enhanced Attention", "2211.07157")
NORM = {"norm_layer": "length", "norm_eps": 1e-6}


def parcnetv2(
    depths: Sequence[int] = (3, 3, 12, 3),
    dims: Sequence[int] = (64, 128, 320, 512),
    kernel_sizes: Sequence[int] = (111, 55, 27, 13),
    local_kernel_size: int = 7,
    mlp_ratio: float | Sequence[float] = 5.0,
    mlp: str | None = "gated",
    num_heads: Sequence[int] | None = None,
    mixers: str | Sequence[str | Sequence[str]] | None = None,
    mixer_args: MixerArgs | None = None,
    **kwargs: Any,
) -> Pyramid:
    """Pyramid of oversized convolutions and gated MLPs.

    Args:
        depths: Blocks of each stage.
        dims: Channels of each stage.
        kernel_sizes: Length of the convolutions along rows and columns, one a stage.
        local_kernel_size: Side of the local convolutions.
        mlp_ratio: Hidden width of the MLPs over the channels; or one a stage.
        mlp: Name of the MLPs, one of `visionattn.layers.MLPS`.
        num_heads: Heads of other token mixers; None for 1.
        mixers: Other token mixers, as `Pyramid` takes them; then `mixer_args` are theirs.
        mixer_args: Arguments of other mixers.
        **kwargs: Of `Pyramid`.

    Raises:
        ValueError: If `kernel_sizes` has not one entry a stage.
    """
    if len(kernel_sizes) != len(depths):
        raise ValueError(f"kernel_sizes={tuple(kernel_sizes)} must have one entry for each of the {len(depths)} stages")

    def oversized(stage: int, block: int) -> Mapping[str, Any]:
        return {"kernel_size": kernel_sizes[stage], "local_kernel_size": local_kernel_size}

    model = Pyramid(
        depths,
        dims,
        num_heads or [1] * len(depths),
        stem="overlap",
        stem_args={"padding": 2, **NORM},
        downsample_args={"bias": True, "norm_first": True, **NORM},
        mixers=mixers or "oversized",
        mixer_args=oversized if mixers is None else mixer_args,
        mlp_ratio=mlp_ratio,
        mlp=mlp,
        input_scale=[1.0 if i > 1 else None for i in range(len(depths))],
        own_last_norm=True,
        final_norm=False,
        head="norm",
        **NORM,
        **kwargs,
    )
    model.apply(init_conv)
    return model


AUTHORS = KeyMap(
    "ParCNetV2",
    (
        (r"^downsample_layers\.0\.conv\.", "stem.proj."),
        (r"^downsample_layers\.0\.post_norm\.", "stem.norm."),
        (r"^downsample_layers\.(\d)\.conv\.", to_stage("down.reduction.")),
        (r"^downsample_layers\.(\d)\.pre_norm\.", to_stage("down.norm.")),
        (r"^stages\.(\d)\.(\d+\.)", r"stages.\1.blocks.\2"),
        (r"\.token_mixer\.pwconv([12])\.", r".attn.fc\1.", pointwise),
        (r"\.token_mixer\.dwconv1\.conv_h\.", ".attn.columns."),
        (r"\.token_mixer\.dwconv1\.conv_w\.", ".attn.rows."),
        (r"\.token_mixer\.dwconv2\.", ".attn.local."),
        (r"\.res_scale([12])\.scale$", r".input_scale\1.gamma"),
        (r"\.layer_scale([12])\.scale$", r".scale\1.gamma"),
        (r"^norm(\d)\.", r"output_norms.\1."),
        (r"^head\.", "head.fc."),
        (r"^norm\.", "head.norm."),
    ),
)


def _from_reference(record: Mapping[str, Any]) -> Pyramid:
    config = dict(record["config"])
    args = {
        "depths": config["depths"],
        "dims": config["dims"],
        "kernel_sizes": config["global_kernel_sizes"],
        "drop_path_rate": config.get("drop_path_rate") or 0.0,
    }
    if "num_classes" in config:
        return parcnetv2(**args, num_classes=config["num_classes"])
    model = parcnetv2(**args, output_norms=True, num_classes=0)
    model.reset_classifier(0, "")
    return model


DIMS = (64, 128, 320, 512)
VARIANTS: dict[str, dict[str, Any]] = {
    "va_parcnetv2_xt": {"depths": (3, 3, 9, 2), "dims": (48, 96, 192, 320)},
    "va_parcnetv2_tiny": {"depths": (3, 3, 12, 3), "dims": DIMS, "drop_path_rate": 0.2},
    "va_parcnetv2_small": {"depths": (3, 9, 24, 3), "dims": DIMS, "drop_path_rate": 0.3},
    "va_parcnetv2_base": {"depths": (3, 9, 24, 3), "dims": (96, 192, 384, 576), "drop_path_rate": 0.4},
}
WEIGHTS = {
    f"va_parcnetv2_{size}.untrained": Published(f"parcnetv2_{size}", "", top1, None, *cost)
    for size, top1, *cost in (
        ("xt", 79.4, 7.4, 1.6),
        ("tiny", 83.5, 25, 4.3),
        ("small", 84.3, 39, 7.8),
        ("base", 84.6, 56, 12.5),
    )
}

MICRO = {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48), "kernel_sizes": (31, 15, 7, 3)}
PARCNETV2 = Family(
    "parcnetv2", "ParCNetV2", (PAPER,), "mit", "https://github.com/XuRuihan/ParCNetV2", parcnetv2, (AUTHORS,),
    "parcnetv2", _from_reference, micros={"va_parcnetv2_tiny": MICRO}, dense_args={"*": {"output_norms": True}},
)  # fmt: skip
register(__name__, PARCNETV2, VARIANTS, WEIGHTS)
