# SPDX-License-Identifier: Apache-2.0
"""Gramian attention heads: five light heads, each with a class token made of a Gram matrix, over a ConvNeXt or CSWin.

Paper: Gramian Attention Heads are Strong yet Efficient Vision Learners, arXiv 2310.16483.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from visionattn.layers import (
    Block,
    CrossShapedAttention,
    GramianHead,
    GramianToken,
    NestedBlock,
    create_mixer,
    init_conv,
)

from ._checkpoint import KeyMap, pointwise, to_stage
from ._gramian import ExcitedBottleneck, JoinedPyramid
from ._registry import Family, Paper, Published, register
from .cswin import KEYS as CSWIN_KEYS
from .cswin import cswin_args

PAPER = Paper("Gramian Attention Heads are Strong yet Efficient Vision Learners", "2310.16483")


def ga_convnext(
    depths: Sequence[int] = (3, 3, 9, 3),
    dims: Sequence[int] = (96, 192, 384, 688),
    attn_dim: int = 168,
    gram_dim: int = 192,
    branches: int = 5,
    inner_maps: int = 2,
    embedding_groups: int = 8,
    gram_layer: bool = True,
    layer_scale: float = 1e-6,
    mixers: str | Sequence[str | Sequence[str]] = "depthwise",
    num_heads: Sequence[int] = (1, 1, 1, 1),
    **kwargs: Any,
) -> JoinedPyramid:
    """ConvNeXt with Gramian attention heads.

    Args:
        depths: Blocks of each stage.
        dims: Channels of each stage.
        attn_dim: Channels of the heads' queries, keys and values.
        gram_dim: Channels whose products make a class token.
        branches: Number of heads.
        inner_maps: Maps from within the third stage that the heads read.
        embedding_groups: Groups of the layer that makes a token of the products.
        gram_layer: Whether a block comes before the products.
        layer_scale: Initial value of per-channel factors on the branches of blocks.
        mixers: Other token mixers, as `Pyramid` takes them.
        num_heads: Heads of other token mixers.
        **kwargs: Of `JoinedPyramid`.
    """

    def layer(dim: int, drop_path: float) -> nn.Module:
        mixer = create_mixer("depthwise", dim, 1)
        return NestedBlock(dim, mixer, layer_scale=layer_scale, drop_path=drop_path, norm_eps=1e-6)

    token = {"gram_dim": gram_dim, "attn_dim": attn_dim, "embedding_groups": embedding_groups,
             "layer": layer if gram_layer else None}  # fmt: skip
    model = JoinedPyramid(
        depths,
        dims,
        num_heads,
        inner_maps,
        ExcitedBottleneck,
        partial(_head, token, branches),
        stem="patch",
        stem_args={"drop_ragged": True, "norm_eps": 1e-6},
        downsample="patch",
        downsample_args={"norm_first": True, "norm_eps": 1e-6},
        mixers=mixers,
        layer_scale=layer_scale,
        block=lambda stage, block: NestedBlock,
        norm_eps=1e-6,
        **kwargs,
    )
    model.apply(init_conv)
    return model


def ga_cswin(
    depths: Sequence[int] = (1, 2, 21, 1),
    dims: Sequence[int] = (64, 128, 256, 512),
    num_heads: Sequence[int] = (2, 4, 8, 16, 16),
    stripe_widths: Sequence[int] = (1, 2, 7, 7, 7),
    img_size: int = 224,
    gram_dim: int = 192,
    branches: int = 5,
    inner_maps: int = 4,
    gram_layer: bool = True,
    bottleneck: bool = False,
    deep_stem: bool = True,
    joint_mlp: str = "mlp",
    gram_mlp: str = "mlp",
    token_mlp_groups: int = 2,
    **kwargs: Any,
) -> JoinedPyramid:
    """CSWin Transformer with Gramian attention heads.

    Args:
        depths: Blocks of each stage.
        dims: Channels of each stage.
        num_heads: Heads of each stage, and of the block that joins their maps.
        stripe_widths: Pixels across the stripes of each stage, and of the blocks at the heads.
        img_size: Side of the images that stripes are made for; images of other sizes are taken too.
        gram_dim: Channels whose products make a class token.
        branches: Number of heads.
        inner_maps: Maps from within the third stage that the heads read.
        gram_layer: Whether a block comes before the products.
        bottleneck: Whether maps are joined by a convolutional bottleneck instead of a block.
        deep_stem: Whether the stem has three convolutions instead of one.
        joint_mlp: Name of the MLP of the block that joins the maps, one of `visionattn.layers.MLPS`.
        gram_mlp: Name of the MLP of the block before the products.
        token_mlp_groups: Groups of the class tokens' MLPs.
        **kwargs: Of `JoinedPyramid`.
    """
    width = stripe_widths[4]

    def joint(dim: int, out_dim: int, drop_path: float) -> nn.Module:
        if bottleneck:
            return ExcitedBottleneck(dim, out_dim, drop_path)
        block = Block(out_dim, CrossShapedAttention(out_dim, num_heads[4], width), mlp=joint_mlp, drop_path=drop_path)
        return nn.Sequential(nn.Linear(dim, out_dim), nn.LayerNorm(out_dim), block)

    def layer(dim: int, drop_path: float) -> nn.Module:
        return Block(dim, CrossShapedAttention(dim, 6, width), mlp=gram_mlp, drop_path=drop_path)

    token = {"gram_dim": gram_dim, "attn_dim": dims[-1] // 4, "contraction_groups": 8, "mlp_groups": token_mlp_groups,
             "layer": layer if gram_layer else None}  # fmt: skip
    return JoinedPyramid(
        depths,
        dims,
        num_heads[:4],
        inner_maps,
        joint,
        partial(_head, token, branches),
        stem="deep" if deep_stem else "overlap",
        stem_args={} if deep_stem else {"padding": 2},
        downsample="conv",
        downsample_args={"bias": True},
        mixers="cross_shaped",
        mixer_args=lambda stage, block: cswin_args(stripe_widths[:4], img_size, stage),
        **kwargs,
    )


def _head(token: Mapping[str, Any], branches: int, *args: Any, drop_path: float) -> GramianHead:
    return GramianHead(*args, token=partial(GramianToken, drop_path=drop_path, **token), branches=branches)


def ga(host: str = "convnext", **kwargs: Any) -> JoinedPyramid:
    """Gramian attention heads over `host`, "convnext" or "cswin"; arguments as `ga_convnext` and `ga_cswin` take them.

    Raises:
        ValueError: If there is no such host.
    """
    if host not in HOSTS:
        raise ValueError(f"host={host!r} must be one of {tuple(HOSTS)}")
    return HOSTS[host](**kwargs)


HOSTS = {"convnext": ga_convnext, "cswin": ga_cswin}


HEAD = (
    (r"^gram_(contraction|embedding)\.(\d)\.", r"head.tokens.\2.\1."),
    (r"^ga\.(\d)\.gamma_([12])$", r"head.tokens.\1.scale\2.gamma"),
    (r"^ga\.(\d)\.", r"head.tokens.\1."),
    (r"^fc\.(\d)\.", r"head.fc.branches.\1."),
    (r"^stage(?:s\.4|5)\.downsample\.", "joint.shortcut."),
    (r"^stage(?:s\.4|5)\.bn(\d)\.", r"joint.norm\1."),
    (r"^stage(?:s\.4|5)\.(conv\d|se)\.", r"joint.\1."),
)
CONVNEXT_KEYS = KeyMap(
    "GA-ConvNeXt",
    (
        *HEAD,
        (r"^gram_layer\.(\d)\.blocks\.0\.", r"head.tokens.\1.layer."),
        (r"^stem\.0\.", "stem.proj."),
        (r"^stem\.1\.", "stem.norm."),
        (r"^stages\.(\d)\.downsample\.0\.", to_stage("down.norm.")),
        (r"^stages\.(\d)\.downsample\.1\.", to_stage("down.proj.")),
        (r"\.conv_dw\.", ".attn.conv."),
        (r"(blocks\.\d+|layer)\.gamma$", r"\1.scale.gamma"),
    ),
)


GA_CSWIN_KEYS = KeyMap(
    "GA-CSWin",
    (
        *HEAD,
        (r"^stage5\.1\.conv\.", "joint.0.", pointwise),
        (r"^stage5\.1\.norm\.", "joint.1."),
        (r"^stage5\.2\.", "joint.2."),
        (r"^gram_layer\.(\d)\.1\.", r"head.tokens.\1.layer."),
        (r"^(joint\.2|head\.tokens\.\d\.layer)\.(qkv|proj)\.", r"\1.attn.\2."),
        (r"^stage1_conv_embed\.(?:5|10)\.", lambda m: f"stem.conv{'2' if '.5.' in m[0] else '3'}."),
        (r"^stage1_conv_embed\.(?:7|12)\.", lambda m: f"stem.norm{'2' if '.7.' in m[0] else '3'}."),
        *(rule for rule in CSWIN_KEYS.keys if rule[0] != r"^head\."),
    ),
)

ARGUMENTS = {
    "dims": "dims", "depths": "depths", "depth": "depths", "dim_embed": "attn_dim", "stage3_naggre": "inner_maps",
    "gram_dim": "gram_dim", "branches": "branches", "num_classes": "num_classes", "ls_init_value": "layer_scale",
    "gram_embedding_gropus": "embedding_groups", "gram_layer": "gram_layer", "ga_layer": "gram_layer",
    "deep_stem": "deep_stem", "split_size": "stripe_widths", "num_heads": "num_heads", "img_size": "img_size",
    "ga_mlp_groups": "token_mlp_groups", "drop_path_rate": "drop_path_rate",
}  # fmt: skip


def _from_reference(record: Mapping[str, Any]) -> JoinedPyramid:
    config = record["config"]
    args = {ours: config[name] for name, ours in ARGUMENTS.items() if name in config}
    if "split_size" not in config:
        *args["depths"], joints = args["depths"]
        *args["dims"], width = args["dims"]
        if (joints, width) != (1, args["dims"][-1]):
            raise ValueError(f"dims={config['dims']} and depths={config['depths']} must end in a joint of one block")
        return ga(**args)
    mlps = {ours: _mlp(config.get(name, 1)) for name, ours in MLP_GROUPS.items()}
    return ga("cswin", **args, **mlps, bottleneck=config.get("stage5") == "bottleneck")


MLP_GROUPS = {"stage5_mlp_groups": "joint_mlp", "ga_layer_mlp_groups": "gram_mlp"}


def _mlp(groups: int) -> str:
    return "mlp" if groups == 1 else f"grouped_{groups}"


def _outputs(model: JoinedPyramid, x: Tensor) -> dict[str, Tensor]:
    features = model.forward_features(x)
    branches = {f"branch.{k}": logits for k, logits in enumerate(model.head.branch_logits(features))}
    return {"logits": model.forward_head(features), **branches}


def _variant(drop_path_rate: float, **args: Any) -> dict[str, Any]:
    return {**args, "drop_path_rate": drop_path_rate}


SHALLOW, DEEP = (3, 3, 9, 3), (3, 3, 27, 3)
VARIANTS: dict[str, dict[str, Any]] = {
    "va_ga_convnext_tiny_688": _variant(0.2, depths=SHALLOW),
    "va_ga_convnext_tiny_768": _variant(0.2, depths=SHALLOW, dims=(96, 192, 384, 768), attn_dim=192),
    "va_ga_convnext_small_688": _variant(0.4, depths=DEEP, inner_maps=4),
    "va_ga_convnext_small_768": _variant(0.4, depths=DEEP, dims=(96, 192, 384, 768), attn_dim=192, inner_maps=4),
    "va_ga_convnext_base_976": _variant(0.5, depths=DEEP, dims=(128, 256, 512, 976), attn_dim=240, inner_maps=4),
    "va_ga_convnext_base_1024": _variant(0.5, depths=DEEP, dims=(128, 256, 512, 1024), attn_dim=256, inner_maps=4),
}
NEAREST = "The widths of the network with the published figures are not known; this one is nearest by its parameters"


def _row(reference: str, *figures: float) -> Published:
    if not figures:
        return Published(reference, "")
    top1, params_m, gflops = figures
    return Published(reference, "", top1, None, params_m, gflops, gflops_differ=NEAREST)


WEIGHTS = {
    "va_ga_convnext_tiny_688.untrained": _row("ga_convnext_tiny_688", 83.2, 48.7, 6.3),
    "va_ga_convnext_tiny_768.untrained": _row("ga_convnext_tiny_768"),
    "va_ga_convnext_small_688.untrained": _row("ga_convnext_small_688", 83.9, 70.4, 10.5),
    "va_ga_convnext_small_768.untrained": _row("ga_convnext_small_768"),
    "va_ga_convnext_base_976.untrained": _row("ga_convnext_base_976", 84.3, 124.3, 19.0),
    "va_ga_convnext_base_1024.untrained": _row("ga_convnext_base_1024"),
}

MICRO = {"depths": [1, 1, 4, 1], "dims": [8, 16, 24, 32], "attn_dim": 16, "gram_dim": 16, "branches": 2,
         "inner_maps": 1}  # fmt: skip
GRAMIAN = Family(
    "gramian", "Gramian attention heads", (PAPER,), "apache-2.0", "https://github.com/Lab-LVM/imagenet-models", ga,
    (CONVNEXT_KEYS, GA_CSWIN_KEYS), "gramian", _from_reference, micros={"va_ga_convnext_tiny_688": MICRO},
    outputs=_outputs,
)  # fmt: skip
register(__name__, GRAMIAN, VARIANTS, WEIGHTS)
