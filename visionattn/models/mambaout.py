# SPDX-License-Identifier: Apache-2.0
"""MambaOut: a pyramid of gated convolutions, Mamba's blocks without their state space model.

Paper: MambaOut: Do We Really Need Mamba for Vision?, arXiv 2405.07992. Weights: Apache-2.0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from visionattn.layers import init_conv

from ._checkpoint import KeyMap, to_stage
from ._pyramid import MixerArgs, Pyramid
from ._registry import Family, Paper, Published, register

PAPER = Paper("MambaOut: Do We Really Need Mamba for Vision?", "2405.07992")
RELEASES = "https://github.com/yuweihao/MambaOut/releases/download/model"


def mambaout(
    depths: Sequence[int] = (3, 3, 9, 3),
    dims: Sequence[int] = (96, 192, 384, 576),
    expansion_ratio: float = 8 / 3,
    conv_ratio: float = 1.0,
    kernel_size: int = 7,
    act: str = "gelu",
    stem_norm: bool = True,
    downsample_norm_first: bool = False,
    head: str = "norm_mlp_norm",
    num_heads: Sequence[int] | None = None,
    mixers: str | Sequence[str | Sequence[str]] | None = None,
    mixer_args: MixerArgs | None = None,
    mlp: str | None = None,
    **kwargs: Any,
) -> Pyramid:
    """Pyramid of gated convolutions, with the head's norm after the pooling.

    Args:
        depths: Blocks of each stage.
        dims: Channels of each stage.
        expansion_ratio: Width of the gates over the channels.
        conv_ratio: Convolved channels over the channels.
        kernel_size: Side of the convolutions.
        act: Activation of gates and stem, as timm names it.
        stem_norm: Whether the stem has a norm between its convolutions.
        downsample_norm_first: Whether downsamplers norm what they read, not what they return.
        head: Name of the head, one of `visionattn.layers.HEADS`.
        num_heads: Heads of other token mixers; None for 1.
        mixers: Other token mixers, as `Pyramid` takes them; then `mixer_args` are theirs.
        mixer_args: Arguments of other mixers.
        mlp: Name of the MLPs that blocks of other mixers may need, one of `visionattn.layers.MLPS`.
        **kwargs: Of `Pyramid`.
    """
    gated = {"expansion_ratio": expansion_ratio, "conv_ratio": conv_ratio, "kernel_size": kernel_size, "act": act}
    model = Pyramid(
        depths,
        dims,
        num_heads or [1] * len(depths),
        stem_args={"norm_eps": 1e-6, "mid_norm": stem_norm, "act": act},
        downsample_args={"bias": True, "norm_eps": 1e-6, "norm_first": downsample_norm_first},
        mixers=mixers or "gated_cnn",
        mixer_args=gated if mixers is None else mixer_args,
        mlp=mlp,
        own_last_norm=True,
        final_norm=False,
        head=head,
        norm_eps=1e-6,
        **kwargs,
    )
    model.apply(init_conv)
    return model


BLOCK = (r"^(stages\.\d\.blocks\.\d+)\.(fc1|conv|fc2)\.", r"\1.attn.\2."), (r"(\.blocks\.\d+)\.norm\.", r"\1.norm1.")
AUTHORS = KeyMap(
    "MambaOut",
    (
        (r"^downsample_layers\.0\.conv1\.", "stem.proj.0."),
        (r"^downsample_layers\.0\.conv2\.", "stem.proj.1."),
        (r"^downsample_layers\.0\.norm1\.", "stem.mid_norm."),
        (r"^downsample_layers\.0\.norm2\.", "stem.norm."),
        (r"^downsample_layers\.(\d)\.conv\.", to_stage("down.reduction.")),
        (r"^downsample_layers\.(\d)\.norm\.", to_stage("down.norm.")),
        (r"^stages\.(\d)\.(\d+\.)", r"stages.\1.blocks.\2"),
        *BLOCK,
        (r"^head\.fc1\.", "head.pre_logits.fc."),
        (r"^head\.fc2\.", "head.fc."),
        (r"^head\.norm\.", "head.pre_logits.norm."),
        (r"^norm\.", "head.norm."),
    ),
)
TIMM = KeyMap(
    "timm",
    (
        (r"^stem\.conv1\.", "stem.proj.0."),
        (r"^stem\.conv2\.", "stem.proj.1."),
        (r"^stem\.norm1\.", "stem.mid_norm."),
        (r"^stem\.norm2\.", "stem.norm."),
        (r"^stages\.(\d)\.downsample\.conv\.", to_stage("down.reduction.")),
        (r"^stages\.(\d)\.downsample\.norm\.", to_stage("down.norm.")),
        *BLOCK,
        (r"\.ls\.gamma$", ".scale1.gamma"),
    ),
)

OPTIONS = {
    "expansion_ratio": "expansion_ratio",
    "stem_mid_norm": "stem_norm",
    "act_layer": "act",
    "head_fn": "head",
} | {name: name for name in ("depths", "dims", "num_classes", "conv_ratio", "kernel_size", "drop_path_rate")}


def _from_reference(record: Mapping[str, Any]) -> Pyramid:
    config = dict(record["config"])
    args: dict[str, Any] = {"downsample_norm_first": config.pop("downsample", "conv") == "conv_nf"}
    # timm's factors start at this value whatever was asked for.
    args["layer_scale"] = None if config.pop("ls_init_value", None) is None else 1e-5
    return mambaout(**args, **{OPTIONS[name]: value for name, value in config.items()})


FEMTO, TINY, BASE = (48, 96, 192, 288), (96, 192, 384, 576), (128, 256, 512, 768)
DEEP, DEEPER = (3, 4, 27, 3), (3, 4, 30, 3)


def _variant(depths: Sequence[int], dims: Sequence[int], **more: Any) -> dict[str, Any]:
    return {"depths": depths, "dims": dims, **more}


def _rw(depths: Sequence[int], dims: Sequence[int], **more: Any) -> dict[str, Any]:
    """Variant that timm added."""
    timms = {"stem_norm": False, "downsample_norm_first": True, "layer_scale": 1e-5, "head": "norm_mlp"}
    return _variant(depths, dims, **timms, **more)


VARIANTS = {
    "va_mambaout_femto": _variant((3, 3, 9, 3), FEMTO, drop_path_rate=0.025),
    "va_mambaout_kobe": _variant((3, 3, 15, 3), FEMTO, drop_path_rate=0.025),
    "va_mambaout_tiny": _variant((3, 3, 9, 3), TINY, drop_path_rate=0.2),
    "va_mambaout_small": _variant(DEEP, TINY, drop_path_rate=0.4),
    "va_mambaout_base": _variant(DEEP, BASE, drop_path_rate=0.6),
    "va_mambaout_small_rw": _rw(DEEP, TINY),
    "va_mambaout_base_short_rw": _rw((3, 3, 25, 3), BASE, expansion_ratio=3.0, conv_ratio=1.25),
    "va_mambaout_base_tall_rw": _rw(DEEPER, BASE, expansion_ratio=2.5, conv_ratio=1.25),
    "va_mambaout_base_wide_rw": _rw(DEEP, BASE, expansion_ratio=3.0, conv_ratio=1.5, act="silu"),
    "va_mambaout_base_plus_rw": _rw(DEEPER, BASE, expansion_ratio=3.0, conv_ratio=1.5, act="silu"),
}


def _row(size: str, *figures: float) -> Published:
    file = f"mambaout_{size}"
    return Published(file, f"{RELEASES}/{file}.pth", figures[0], None, *figures[1:], crop_pct=1.0)


def _timm_row(model: str, tag: str, reference: str = "", **more: Any) -> Published:
    hub = f"timm/mambaout_{model}.{tag}"
    return Published(
        reference or f"mambaout_{model}",
        f"https://huggingface.co/{hub}",
        hub=hub,
        is_page=True,
        **{"crop_pct": 0.95, **more},
    )


def _plus(tag: str, reference: str = "", **more: Any) -> Published:
    return _timm_row("base_plus_rw", tag, reference, crop_pct=1.0, **more)


SQUASHED = "The images of the weights for 384 pixels were resized to a square, whatever their shape"
WEIGHTS = {
    "va_mambaout_femto.in1k": _row("femto", 78.9, 7.3, 1.2),
    "va_mambaout_kobe.in1k": _row("kobe", 80.0, 9.1, 1.5),
    "va_mambaout_tiny.in1k": _row("tiny", 82.7, 26.5, 4.5),
    "va_mambaout_small.in1k": _row("small", 84.1, 48.5, 9.0),
    "va_mambaout_base.in1k": _row("base", 84.2, 84.8, 15.8),
    "va_mambaout_small_rw.sw_e450_in1k": _timm_row("small_rw", "sw_e450_in1k", crop_pct=1.0),
    "va_mambaout_base_short_rw.sw_e500_in1k": _timm_row("base_short_rw", "sw_e500_in1k"),
    "va_mambaout_base_tall_rw.sw_e500_in1k": _timm_row("base_tall_rw", "sw_e500_in1k"),
    "va_mambaout_base_wide_rw.sw_e500_in1k": _timm_row("base_wide_rw", "sw_e500_in1k"),
    "va_mambaout_base_plus_rw.sw_e150_in12k_ft_in1k": _plus("sw_e150_in12k_ft_in1k"),
    "va_mambaout_base_plus_rw.sw_e150_r384_in12k_ft_in1k": _plus(
        "sw_e150_r384_in12k_ft_in1k", "mambaout_base_plus_rw.r384", size=384, note=SQUASHED),
    "va_mambaout_base_plus_rw.sw_e150_in12k": _plus(
        "sw_e150_in12k", "mambaout_base_plus_rw.in12k", num_classes=11821),
}  # fmt: skip

MICRO = {"depths": (1, 1, 2, 1), "dims": (16, 16, 24, 32), "kernel_size": 3}
MAMBAOUT = Family(
    "mambaout", "MambaOut", (PAPER,), "apache-2.0", "https://github.com/yuweihao/MambaOut", mambaout, (AUTHORS, TIMM),
    "mambaout", _from_reference, "stem.proj.0", {"va_mambaout_femto": MICRO, "va_mambaout_base_plus_rw": MICRO},
)  # fmt: skip
register(__name__, MAMBAOUT, VARIANTS, WEIGHTS)
