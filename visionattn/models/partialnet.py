# SPDX-License-Identifier: Apache-2.0
"""PartialNet: a quarter of the channels is convolved, the others are weighed by a gate, in the last stage by attention.

ConvNeXt with the same in place of its depth-wise convolutions is here too.

Paper: Partial Channel Network: Compute Fewer, Perform Better, arXiv 2502.01303.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from visionattn.layers import NestedBlock, PooledMlpHead, init_conv

from ._checkpoint import KeyMap, pointwise, to_stage
from ._pyramid import MixerArgs, Pyramid
from ._registry import Family, Paper, Published, register

PAPER = Paper("Partial Channel Network: Compute Fewer, Perform Better", "2502.01303")
PATNET = Paper("Partial Convolution Meets Visual Attention", "2503.03148")
Mixers = str | Sequence[str | Sequence[str]] | None


def partialnet(
    depths: Sequence[int] = (2, 2, 6, 4),
    embed_dim: int = 64,
    num_heads: Sequence[int] = (1, 1, 1, 4),
    act: str = "relu",
    attention: bool = True,
    spatial_gate: bool = False,
    divisor: int = 4,
    mlp_ratio: float = 2.0,
    head_dim: int = 1280,
    attn_drop: float = 0.1,
    mixers: Mixers = None,
    mixer_args: MixerArgs | None = None,
    **kwargs: Any,
) -> Pyramid:
    """Pyramid of partial convolutions, and of partial attention in the last stage.

    Args:
        depths: Blocks of each stage.
        embed_dim: Channels of the first stage; each next has twice as many.
        num_heads: Heads of each stage; of the authors' mixers the last stage's alone has some.
        act: Activation of MLPs and head, "relu" or "gelu".
        attention: Whether channels that are not convolved are weighed and attended to, or left alone.
        spatial_gate: Whether MLPs end in a gate for pixels.
        divisor: Parts of the channels, of which one is convolved.
        mlp_ratio: Hidden width of the MLPs over the channels.
        head_dim: Hidden channels of the head.
        attn_drop: Dropout of the attention weights in training.
        mixers: Other token mixers, as `Pyramid` takes them; then `mixer_args` are theirs.
        mixer_args: Arguments of other mixers.
        **kwargs: Of `Pyramid`.

    Raises:
        ValueError: If `act` is neither activation.
    """
    if act not in ("relu", "gelu"):
        raise ValueError(f"act={act!r} must be 'relu' or 'gelu'")
    last = len(depths) - 1
    model = Pyramid(
        depths,
        [embed_dim * 2**i for i in range(len(depths))],
        num_heads,
        stem="patch",
        stem_args={"norm_layer": "batch", "drop_ragged": True, "bias": False},
        downsample="patch",
        downsample_args={"norm_layer": "batch", "bias": False},
        mixers=mixers or _mixers(len(depths), attention),
        mixer_args=_mixer_args(last, attention, attn_drop, divisor=divisor) if mixers is None else mixer_args,
        mlp="partial" + "_relu" * (act == "relu") + "_gated" * spatial_gate,
        mlp_ratio=mlp_ratio,
        block=lambda stage, block: partial(NestedBlock, norm=False, mixer_skip=stage == last),
        norm_layer="batch",
        own_last_norm=True,
        final_norm=False,
        head=partial(PooledMlpHead, hidden=head_dim, act=act),
        **kwargs,
    )
    model.apply(init_conv)
    return model


def convnext_pat(
    depths: Sequence[int] = (3, 3, 9, 3),
    dims: Sequence[int] = (96, 192, 384, 768),
    num_heads: Sequence[int] = (1, 1, 1, 4),
    kernel_size: int = 7,
    spatial_gate: bool = False,
    divisor: int = 4,
    layer_scale: float | None = 1e-6,
    attn_drop: float = 0.1,
    mixers: Mixers = None,
    mixer_args: MixerArgs | None = None,
    **kwargs: Any,
) -> Pyramid:
    """ConvNeXt whose depth-wise convolutions gave way to partial ones, with partial attention in the last stage.

    Args:
        depths: Blocks of each stage.
        dims: Channels of each stage.
        num_heads: Heads of each stage; of the authors' mixers the last stage's alone has some.
        kernel_size: Side of the convolutions.
        spatial_gate: Whether MLPs end in a gate for pixels; they have no biases then.
        divisor: Parts of the channels, of which one is convolved.
        layer_scale: Initial value of per-channel factors on the branches; None for no factors.
        attn_drop: Dropout of the attention weights in training.
        mixers: Other token mixers, as `Pyramid` takes them; then `mixer_args` are theirs.
        mixer_args: Arguments of other mixers.
        **kwargs: Of `Pyramid`.
    """
    own = {"divisor": divisor, "kernel_size": kernel_size, "bias": True}
    model = Pyramid(
        depths,
        dims,
        num_heads,
        stem="patch",
        stem_args={"drop_ragged": True, "norm_eps": 1e-6},
        downsample="patch",
        downsample_args={"norm_first": True, "norm_eps": 1e-6},
        mixers=mixers or _mixers(len(depths), True),
        mixer_args=_mixer_args(len(depths) - 1, True, attn_drop, **own) if mixers is None else mixer_args,
        mlp="plain_gated" if spatial_gate else "mlp",
        layer_scale=layer_scale,
        block=lambda stage, block: NestedBlock,
        own_last_norm=True,
        final_norm=False,
        head="norm",
        norm_eps=1e-6,
        **kwargs,
    )
    model.apply(init_conv)
    return model


def _mixers(stages: int, attention: bool) -> list[str]:
    """Mixer of each stage."""
    return ["partial_channel"] * (stages - 1) + ["partial_self"] if attention else ["partial_conv"] * stages


def _mixer_args(last: int, attention: bool, attn_drop: float, **own: Any) -> Callable[[int, int], dict[str, Any]]:
    """Arguments of the mixers: those of all stages, and dropout where there is attention."""
    return lambda stage, block: {**own, "attn_drop": attn_drop} if attention and stage == last else own


def _part(match: re.Match[str]) -> str:
    """Stages have even numbers in the reference, and what joins them odd ones."""
    number, part = int(match[1]), match[2]
    return f"stages.{number // 2}.{ {'blocks': 'blocks', 'reduction': 'down.proj', 'norm': 'down.norm.bn'}[part] }."


def _flat(tensor: Tensor, target: Tensor) -> Tensor:
    """Weights `(C, C, 1, 2)` of a convolution over mean and deviation as those of a linear layer."""
    return tensor.flatten(1)


GATE = (
    (r"\.gate\.conv\.", ".gate.fc."),
    (r"\.gate\.conv_attn\.", ".gate.gate."),
    (r"\.gate\.norm\.", ".gate.norm1.bn."),
    (r"\.gate\.norm2\.", ".gate.norm2.bn."),
    (r"\.mlp\.(?:fc[12]|gate\.(?:fc|gate))\.weight$", r"\g<0>", pointwise),
)
MIXER = (
    (r"\.attn\.attn\.cfc1\.", ".attn.gate.fc.", _flat),
    (r"\.attn\.attn\.bn\.", ".attn.gate.bn."),
    (r"\.attn\.attn\.rpe_k\.lookup_table_bias$", ".attn.attention.rpb"),
    (r"\.attn\.attn\.", ".attn.attention."),
    (r"\.attn\.partial_conv3?\.", ".attn.conv."),
)
KEYS = KeyMap(
    "PartialNet",
    (
        (r"^patch_embed\.proj\.", "stem.proj."),
        (r"^patch_embed\.norm\.", "stem.norm.bn."),
        (r"^stages\.(\d)\.(blocks|reduction|norm)\.", _part),
        (r"\.spatial_mixing\.", ".attn."),
        *MIXER,
        (r"\.mlp\.0\.", ".mlp.fc1."),
        (r"\.mlp\.1\.", ".mlp.norm.bn."),
        (r"\.mlp\.3\.", ".mlp.fc2."),
        (r"\.mlp\.4\.", ".mlp.gate."),
        *GATE,
        (r"\.layer_scale$", ".scale.gamma"),
        (r"^norm(\d)\.", lambda match: f"output_norms.{int(match[1]) // 2}.bn."),
        (r"^head\.", "head.fc."),
        (r"^avgpool_pre_head\.1\.weight$", "head.pre_logits.0.weight", pointwise),
    ),
)
CONVNEXT_KEYS = KeyMap(
    "PartialNet's ConvNeXt",
    (
        (r"^stem\.0\.", "stem.proj."),
        (r"^stem\.1\.", "stem.norm."),
        (r"^stages\.(\d)\.downsample\.0\.", to_stage("down.norm.")),
        (r"^stages\.(\d)\.downsample\.1\.", to_stage("down.proj.")),
        (r"\.conv_dw\.", ".attn."),
        *MIXER,
        (r"\.mlp_conv([12])\.", r".mlp.fc\1."),
        (r"\.mlp_spatial\.", ".mlp.gate."),
        *GATE,
        (r"\.gamma$", ".scale.gamma"),
    ),
)

NAMES = {
    "depths": "depths", "embed_dim": "embed_dim", "dims": "dims", "mlp_ratio": "mlp_ratio", "n_div": "divisor",
    "feature_dim": "head_dim", "num_classes": "num_classes", "drop_path_rate": "drop_path_rate",
    "use_channel_attn": "attention", "use_spatial_attn": "spatial_gate",
}  # fmt: skip
# What the reference has by default, and what no published model changes.
DEFAULTS = {"use_channel_attn": True, "use_spatial_attn": False}
FIXED = {"patch_size": 4, "patch_stride": 4, "patch_size2": 2, "patch_stride2": 2, "norm_layer": "BN",
         "auto_div": False}  # fmt: skip


def _from_reference(is_convnext: bool, record: Mapping[str, Any]) -> Pyramid | None:
    """Model of a record of one of the two networks; None for one of the other."""
    if ("dims" in record["config"]) != is_convnext:
        return None
    config = {**DEFAULTS, **record["config"]}
    wrong = {name: config[name] for name, value in FIXED.items() if config.get(name, value) != value}
    if wrong:
        raise ValueError(f"arguments {wrong} of the reference must be {FIXED}")
    args = {ours: config[name] for name, ours in NAMES.items() if name in config}
    scale = config.get("ls_init_value", config.get("layer_scale_init_value", 0))
    args["layer_scale"] = scale if scale > 0 else None
    if is_convnext:
        args.pop("attention")
        return convnext_pat(**args)
    args["act"] = config.get("act_layer", "GELU").lower()
    args["num_heads"] = (1, 1, 1, 4 if config.get("patnet_t0", True) else 6)
    if not config.get("fork_feat"):
        return partialnet(**args)
    model = partialnet(**args, output_norms=True)
    model.reset_classifier(0, "")
    return model


def _variant(embed_dim: int, depths: tuple[int, ...], rate: float, **more: Any) -> dict[str, Any]:
    return {"embed_dim": embed_dim, "depths": depths, "drop_path_rate": rate, **more}


VARIANTS = {
    "va_partialnet_t0": _variant(32, (1, 2, 8, 2), 0.0, act="gelu"),
    "va_partialnet_t1": _variant(48, (1, 2, 8, 2), 0.02, act="gelu", spatial_gate=True),
    "va_partialnet_t2": _variant(64, (2, 2, 6, 4), 0.05),
    "va_partialnet_s": _variant(96, (2, 2, 9, 4), 0.1),
    "va_partialnet_m": _variant(128, (2, 3, 16, 4), 0.2),
    "va_partialnet_l": _variant(160, (2, 3, 20, 4), 0.3),
}
CONVNEXT_VARIANTS: dict[str, dict[str, Any]] = {
    "va_convnext_pat_tiny": {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768)}
}
WEIGHTS = {f"{name}.untrained": Published(name.removeprefix("va_"), "", crop_pct=0.9) for name in VARIANTS}
CONVNEXT_WEIGHTS = {"va_convnext_pat_tiny.untrained": Published("convnext_tiny_pat", "", crop_pct=0.9)}

# Without dropout, whose random numbers no two runs share.
MICRO = {"depths": (1, 1, 2, 1), "num_heads": (1, 1, 1, 2), "attn_drop": 0.0}
PARTIALNET = Family(
    "partialnet", "PartialNet", (PAPER, PATNET), "mit", "https://github.com/haiduo/PartialNet", partialnet, (KEYS,),
    "partialnet", partial(_from_reference, False),
    micros={"va_partialnet_t1": {**MICRO, "embed_dim": 8, "head_dim": 24}}, dense_args={"*": {"output_norms": True}},
)  # fmt: skip
CONVNEXT_PAT = Family(
    "convnext_pat", "ConvNeXt with partial attention", (PAPER,), "mit", PARTIALNET.origin, convnext_pat,
    (CONVNEXT_KEYS,), "partialnet", partial(_from_reference, True),
    micros={"va_convnext_pat_tiny": {**MICRO, "dims": (8, 16, 24, 32)}}, dense_args={"*": {"output_norms": True}},
)  # fmt: skip
register(__name__, PARTIALNET, VARIANTS, WEIGHTS)
register(__name__, CONVNEXT_PAT, CONVNEXT_VARIANTS, CONVNEXT_WEIGHTS)
