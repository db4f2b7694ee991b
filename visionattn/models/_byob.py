# SPDX-License-Identifier: Apache-2.0
"""timm's configurable ResNets with our attention in place of the 3x3 convolution of some blocks."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from torch import nn

from visionattn.layers import StridedBottleneckAttention, StridedHaloAttention, pick

from ._base import drop_path_rates
from ._checkpoint import KeyMap
from ._registry import Published

# Levels of timm's networks at strides 4, 8, 16, 32; the first one is at stride 2.
STAGES = (1, 2, 3, 4)
STEM_TYPES = ("tiered", "7x7", "3x3")
DOWNSAMPLES = ("conv1x1", "avg", "")
ORIGIN = "https://github.com/huggingface/pytorch-image-models"
RELEASES = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-attn-weights/"


class Blocks(NamedTuple):
    """Residual blocks at one resolution.

    Args:
        kinds: A letter for each block: "c" convolution, "h" halo attention, "g" global attention.
        dim: Channels of the blocks' output.
        stride: Stride of the first block.
        bottle_ratio: Channels inside a block over those of its output, or of its input where the network says so.
        args: Arguments of this stage's attention, in place of or besides those of the network's.
    """

    kinds: str
    dim: int
    stride: int = 2
    bottle_ratio: float = 0.25
    args: Mapping[str, Any] | None = None


def _halo(
    dim: int, stride: int, feat_size: tuple[int, int] | None = None, device: Any = None, dtype: Any = None, **args: Any
) -> nn.Module:
    """Halo attention as timm's blocks ask for it."""
    return StridedHaloAttention(dim, stride=stride, **args).to(device, dtype)


def _bottleneck(
    dim: int, stride: int, feat_size: tuple[int, int], device: Any = None, dtype: Any = None, **args: Any
) -> nn.Module:
    """Global attention as timm's blocks ask for it."""
    if min(feat_size) < 1:
        raise ValueError(
            f"img_size leaves a map of {feat_size[0]}x{feat_size[1]} pixels to attend on; use a larger one"
        )
    return StridedBottleneckAttention(dim, stride=stride, map_size=feat_size, **args).to(device, dtype)


# Attention by the letter of a block; a convolution has none.
KINDS: dict[str, Callable[..., nn.Module] | None] = {"c": None, "h": _halo, "g": _bottleneck}


class AttentionByobNet(ByobNet):
    """timm's `ByobNet`; convolutions and attention both round up the sides of halved maps, so any image will do.

    Args:
        stages: Blocks of the stages, each a `Blocks` or its fields in order.
        halo: Arguments of the halo attention of all stages.
        bottleneck: Arguments of the global attention of all stages.
        img_size: Side or `(height, width)` of the images whose maps the tables of global attention are made for.
        stem_type: Convolutions of the stem, one of `STEM_TYPES`.
        stem_pool: "maxpool", or "" for none.
        stem_chs: Channels of the stem.
        group_size: Channels of a group of the 3x3 convolutions; 0 for one group.
        act_layer: Activation, as timm names it.
        attn_layer: Gate of the convolution blocks, "se" or "eca"; "" or None for none.
        attn_kwargs: Arguments of the gates.
        downsample: Shortcut of blocks that change the map's shape, "conv1x1" or "avg"; "" for none.
        bottle_in: Whether the channels inside a block follow from those of its input.
        linear_out: Whether the sums of branches and shortcuts have no activation.
        final_chs: Channels of a last 1x1 convolution; 0 for none.
        drop_path_rate: Drop-path rate of the last block, rising linearly from 0.
        **kwargs: Of timm's `ByobNet`: `num_classes`, `in_chans`, `global_pool`, `drop_rate`.

    Raises:
        ValueError: If a stage has no blocks or an unknown one, or an argument is out of range.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[Any]],
        halo: Mapping[str, Any] | None = None,
        bottleneck: Mapping[str, Any] | None = None,
        img_size: int | tuple[int, int] = 256,
        stem_type: str = "tiered",
        stem_pool: str = "maxpool",
        stem_chs: int = 64,
        group_size: int = 0,
        act_layer: str = "relu",
        attn_layer: str | None = "",
        attn_kwargs: Mapping[str, Any] | None = None,
        downsample: str = "conv1x1",
        bottle_in: bool = False,
        linear_out: bool = False,
        final_chs: int = 0,
        drop_path_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        # Before timm builds anything: it takes rates out of range, and fails on them when training.
        blocks = [Blocks(*stage) for stage in stages]
        if not blocks:
            raise ValueError(f"stages={stages!r} must have at least one stage")
        _check_name("stem_type", stem_type, STEM_TYPES)
        _check_name("downsample", downsample, DOWNSAMPLES)
        drop_path_rates(drop_path_rate, [len(stage.kinds) for stage in blocks])
        args = {"h": dict(halo or {}), "g": dict(bottleneck or {})}
        cfg = ByoModelCfg(
            blocks=tuple(_timm_stage(stage, group_size, args) for stage in blocks),
            downsample=downsample,
            stem_type=stem_type,
            stem_pool=stem_pool,
            stem_chs=stem_chs,
            num_features=final_chs,
            act_layer=act_layer,
            attn_layer=attn_layer or None,
            attn_kwargs=dict(attn_kwargs or {}),
            block_kwargs={name: True for name, on in (("bottle_in", bottle_in), ("linear_out", linear_out)) if on},
        )
        super().__init__(cfg, img_size=img_size, drop_path_rate=drop_path_rate, **kwargs)


def _check_name(argument: str, name: str, allowed: Sequence[str]) -> None:
    if name not in allowed:
        raise ValueError(f"{argument}={name!r} must be one of {', '.join(map(repr, allowed))}")


def _timm_stage(stage: Blocks, group_size: int, args: Mapping[str, Mapping[str, Any]]) -> tuple[ByoBlockCfg, ...]:
    """A stage in timm's words."""
    if not stage.kinds:
        raise ValueError(f"kinds={stage.kinds!r} of {stage} must have a letter for each block, at least one")
    block = partial(ByoBlockCfg, d=1, c=stage.dim, s=stage.stride, gs=group_size, br=stage.bottle_ratio)
    blocks = []
    for kind in stage.kinds:
        layer: Any = pick("kind of block", kind, KINDS)  # timm takes what makes a layer for its name too
        if layer is None:
            blocks.append(block("bottle"))
        else:
            more = {**args[kind], **(stage.args or {})}
            blocks.append(block("self_attn", self_attn_layer=layer, self_attn_kwargs=more))
    return tuple(blocks)


# timm's names are ours too.
KEYS = KeyMap("timm", (), optional=(r"num_batches_tracked$",))


def by_timm(name: str, tag: str, file: str, top1: float, top5: float, params_m: float, **more: Any) -> Published:
    """Weights that timm's authors trained."""
    note = "Weights and accuracies are timm's; the paper's authors published none"
    args = {"size": 256, "hub": f"timm/{name}.{tag}", "note": note, **more}
    return Published(name, RELEASES + file, top1, top5, params_m, **args)


_LETTERS = {"halo": "h", "bottleneck": "g"}
_NAMES = {"block_size": "block_size", "halo_size": "halo_size", "num_heads": "num_heads", "dim_head": "head_dim",
          "qk_ratio": "qk_ratio", "qkv_bias": "qkv_bias", "avg_down": "avg_down",
          "scale_pos_embed": "scale_rel"}  # fmt: skip
_SAME = ("stem_type", "stem_pool", "stem_chs", "act_layer", "attn_layer", "attn_kwargs", "downsample", "num_classes")


def from_reference(config: Mapping[str, Any]) -> AttentionByobNet:
    """Model of timm's constructor arguments."""
    groups = {block["gs"] for stage in config["blocks"] for block in _listed(stage)}
    if len(groups) != 1:
        raise ValueError(f"gs={sorted(groups)} must be the same in all blocks")
    return AttentionByobNet(
        [_our_stage(_listed(stage), config) for stage in config["blocks"]],
        img_size=config.get("img_size") or tuple(config.get("input_size", (3, 256, 256))[1:]),
        group_size=groups.pop(),
        final_chs=config["num_features"],
        **{name: config[name] for name in _SAME},
        **config["block_kwargs"],
    )


def _listed(stage: Any) -> list[Mapping[str, Any]]:
    return list(stage) if isinstance(stage, (list, tuple)) else [stage]


def _our_stage(blocks: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> Blocks:
    kinds, args = "", {}
    for block in blocks:
        kind = "c"
        if block["type"] == "self_attn":
            kind = _LETTERS[block["self_attn_layer"] or config["self_attn_layer"]]
            own = config["self_attn_kwargs"] if block["self_attn_kwargs"] is None else block["self_attn_kwargs"]
            args = {_NAMES[name]: value for name, value in own.items()}
        kinds += kind * block["d"]
    first = blocks[0]
    return Blocks(kinds, first["c"], first["s"], first["br"], args)
