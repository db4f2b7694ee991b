# SPDX-License-Identifier: Apache-2.0
"""PartialNet: a quarter of the channels is convolved, the others are weighed by a gate, in the last stage by attention.

Paper: Partial Channel Network: Compute Fewer, Perform Better, arXiv 2502.01303.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from visionattn.layers import DynamicPartialConvolution, NestedBlock, PartialConvolution, PooledMlpHead, init_conv

from ._checkpoint import KeyMap, pointwise
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
    dynamic: bool = False,
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
        dynamic: Whether training chooses how many channels are convolved, in place of all that attends.
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
    if dynamic and mixers is None:
        mixers, mixer_args = "partial_conv", {}
    model = Pyramid(
        depths,
        [embed_dim * 2**i for i in range(len(depths))],
        num_heads,
        stem="patch",
        stem_args={"norm_layer": "batch", "drop_ragged": True, "bias": False},
        downsample="patch",
        downsample_args={"norm_layer": "batch", "bias": False},
        mixers=mixers or mixers_of(len(depths), attention),
        mixer_args=mixer_args_of(last, attention, attn_drop, divisor=divisor) if mixers is None else mixer_args,
        mlp="partial" + "_relu" * (act == "relu") + "_gated" * spatial_gate,
        mlp_ratio=mlp_ratio,
        block=lambda stage, block: partial(NestedBlock, norm=False, mixer_skip=stage == last),
        norm_layer="batch",
        own_last_norm=True,
        final_norm=False,
        head=partial(PooledMlpHead, hidden=head_dim, act=act),
        **kwargs,
    )
    if dynamic:
        for module in model.modules():
            if isinstance(module, NestedBlock) and isinstance(module.attn, PartialConvolution):
                module.attn = DynamicPartialConvolution(sum(module.attn.split))
    model.apply(init_conv)
    return model


def mixers_of(stages: int, attention: bool) -> list[str]:
    """Mixer of each stage."""
    return ["partial_channel"] * (stages - 1) + ["partial_self"] if attention else ["partial_conv"] * stages


def mixer_args_of(last: int, attention: bool, attn_drop: float, **own: Any) -> Callable[[int, int], dict[str, Any]]:
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
        (r"\.spatial_mixing\.one_channel$", ".attn.convolved"),
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
    constants=(r"\.spatial_mixing\.(?:I|one|c_div)$",),
)
NAMES = {
    "depths": "depths", "embed_dim": "embed_dim", "dims": "dims", "mlp_ratio": "mlp_ratio", "n_div": "divisor",
    "num_classes": "num_classes", "drop_path_rate": "drop_path_rate", "use_spatial_attn": "spatial_gate",
    "feature_dim": "head_dim",
}  # fmt: skip
OWN_NAMES = {"use_channel_attn": "attention", "auto_div": "dynamic"}
# What the reference has by default, and what no published model changes.
DEFAULTS = {"use_channel_attn": True, "use_spatial_attn": False}
FIXED = {"patch_size": 4, "patch_stride": 4, "patch_size2": 2, "patch_stride2": 2, "norm_layer": "BN",
         "pre_epoch": 0}  # fmt: skip


def arguments(record: Mapping[str, Any]) -> dict[str, Any]:
    """Our constructor arguments of a record, but for those that one of the networks alone has.

    Raises:
        ValueError: If the reference was built as none of ours is.
    """
    config = {**DEFAULTS, **record["config"]}
    wrong = {name: config[name] for name, value in FIXED.items() if config.get(name, value) != value}
    if wrong:
        raise ValueError(f"arguments {wrong} of the reference must be {FIXED}")
    args = {ours: config[name] for name, ours in NAMES.items() if name in config}
    scale = config.get("ls_init_value", config.get("layer_scale_init_value", 0))
    return {**args, "layer_scale": scale if scale > 0 else None}


def _from_reference(record: Mapping[str, Any]) -> Pyramid | None:
    """Model of a record; None for one of the ConvNeXt."""
    config = {**DEFAULTS, **record["config"]}
    if "dims" in config:
        return None
    own = {ours: config[name] for name, ours in OWN_NAMES.items() if name in config}
    heads = (1, 1, 1, 4 if config.get("patnet_t0", True) else 6)
    args = {**arguments(record), **own, "act": config.get("act_layer", "GELU").lower(), "num_heads": heads}
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
WEIGHTS = {f"{name}.untrained": Published(name.removeprefix("va_"), "", crop_pct=0.9) for name in VARIANTS}
# Without dropout, whose random numbers no two runs share.
MICRO = {"depths": (1, 1, 2, 1), "num_heads": (1, 1, 1, 2), "attn_drop": 0.0}
PARTIALNET = Family(
    "partialnet", "PartialNet", (PAPER, PATNET), "mit", "https://github.com/haiduo/PartialNet", partialnet, (KEYS,),
    "partialnet", _from_reference,
    micros={"va_partialnet_t1": {**MICRO, "embed_dim": 8, "head_dim": 24}}, dense_args={"*": {"output_norms": True}},
)  # fmt: skip
register(__name__, PARTIALNET, VARIANTS, WEIGHTS)
