# SPDX-License-Identifier: Apache-2.0
"""Gramian attention heads: five light heads, each with a class token made of a Gram matrix, over a ConvNeXt or CSWin.

Paper: Gramian Attention Heads are Strong yet Efficient Vision Learners, arXiv 2310.16483.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ._checkpoint import KeyMap, pointwise, to_stage
from ._gramian import JoinedPyramid, ga
from ._registry import Family, Paper, Published, register
from .cswin import KEYS as CSWIN_KEYS

PAPER = Paper("Gramian Attention Heads are Strong yet Efficient Vision Learners", "2310.16483")


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
