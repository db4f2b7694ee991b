# SPDX-License-Identifier: Apache-2.0
"""Residual attention networks: attention modules whose masks are made bottom-up, then top-down.

Paper: Residual Attention Network for Image Classification, arXiv 1704.06904.
"""

import re
from collections.abc import Mapping
from typing import Any

from ._checkpoint import KeyMap
from ._reference import source_file
from ._registry import Family, Paper, Published, register
from ._residual_attention import ResidualAttentionNetwork

PAPER = Paper("Residual Attention Network for Image Classification", "1704.06904")
ORIGIN = "https://github.com/fwang91/residual-attention-network"


def residual_attention(**kwargs: Any) -> ResidualAttentionNetwork:
    """Residual units and attention modules; arguments as `ResidualAttentionNetwork` takes them."""
    return ResidualAttentionNetwork(**kwargs)


def _module(match: re.Match[str]) -> str:
    """Attention module `A_1`: the first after the unit that its stage begins with."""
    return f"stages.{'ABC'.index(match[1])}.blocks.{match[2]}."


def _pooled(match: re.Match[str]) -> str:
    """Norm of what the first unit of a level returned: of its skip unit, or of the next unit on the last level."""
    stage, level = int(match[1]), int(match[3]) - 1
    is_last = level == 2 - stage
    reader = f"down.{level}.1" if is_last else f"skip.{level}"
    return f"stages.{stage}.blocks.{match[2]}.mask.{reader}.norm."


def _less(path: str) -> Any:
    """Replacement by `path` with the match's number less one."""
    return lambda match: path.format(int(match[1]) - 1)


# Norms of what a tensor's readers read have the tensor's name.
CAFFE = KeyMap(
    "Residual attention network's",
    (
        (r"^conv1/bn\.", "stem.conv_norm."),
        (r"^conv1\.", "stem.conv."),
        (r"^pool1_3x3_s2/bn\.", "stem.norm."),
        (r"^classifier\.", "head.fc."),
        (r"^post_res_4_3/bn\.", "norm.0.bn."),
        (r"^post_res_4_(\d)/bn\.", r"stages.3.blocks.\1.unit.norm."),
        (r"^post_res_4_(\d)/", _less("stages.3.blocks.{}.unit.")),
        (r"^pre_res_(\d)/bn\.", _less("stages.{}.blocks.0.norm.")),
        (r"^pre_res_(\d)/", _less("stages.{}.blocks.0.unit.")),
        (r"^Attention([ABC])_(\d)/", _module),
        (r"(blocks\.\d\.)bn\.", r"\1norm."),
        (r"(blocks\.\d\.)fusion/bn\.", r"\1unit.norm."),
        (r"(blocks\.\d\.)(branch\d/)", r"\1unit.\2"),
        (r"trunk/res([12])/bn\.", r"trunk.\1.norm."),
        (r"trunk/res(\d)/", _less("trunk.{}.")),
        (r"mask/linear_1/bn\.", "mask.norm2."),
        (r"mask/linear_(\d)\.", r"mask.conv\1."),
        (r"mask/up_sample/interp_1/bn\.", "mask.norm1."),
        (r"mask/up_sample(\d)/bn\.", _less("mask.up.{}.norm.")),
        (r"mask/up(?:_sample)?/res(\d)_1/", _less("mask.up.{}.")),
        (r"mask/skip/res(\d)/", _less("mask.skip.{}.")),
        (r"mask/down_sample/pool(\d)_3x3_s2/bn\.", _less("mask.down.{}.0.norm.")),
        (r"^stages\.(\d)\.blocks\.(\d)\.mask/down_sample/res(\d)_1/bn\.", _pooled),
        (r"mask/down(?:_sample)?/res(\d)_(\d)/", lambda m: f"mask.down.{int(m[1]) - 1}.{int(m[2]) - 1}."),
        (r"branch1/conv(\d)_\dx\d/bn\.", r"norm\1."),
        (r"branch1/conv(\d)_\dx\d\.", r"conv\1."),
        (r"branch2/conv1_1x1/bn\.", "proj_norm."),
        (r"branch2/conv1_1x1\.", "proj."),
    ),
)


def _from_reference(record: Mapping[str, Any]) -> ResidualAttentionNetwork:
    config = record["config"]
    variant = source_file(record).name.lower().removesuffix("-deploy.prototxt").replace("-", "")
    args = dict(VARIANTS[f"va_{variant}"])
    divisor = config.get("channel_divisor", 1)
    return residual_attention(
        **args, embed_dim=64 // divisor, groups=32 // divisor, num_classes=config["num_classes"]
    )  # fmt: skip


GROUPED = {"unit": "grouped"}
VARIANTS: dict[str, dict[str, Any]] = {
    "va_attention56": {"depths": (1, 1, 1, 2)},
    "va_attention92": {"depths": (1, 2, 3, 2)},
    "va_attentionnext56": {"depths": (1, 1, 1, 2), **GROUPED},
    "va_attentionnext92": {"depths": (1, 2, 3, 2), **GROUPED},
}
BIGGER = "The published figures are of a smaller network than the published graph"
AT_224 = "The published multiply-adds are those of images of 224 pixels; the accuracy was measured at 320"


def _row(reference: str, *figures: Any, **more: Any) -> Published:
    return Published(reference, "", *figures, **{"interpolation": "bilinear", **more})


WEIGHTS = {
    "va_attention56.untrained": _row("attention56", 78.24, 94.1, 31.9, 6.2),
    "va_attention92.untrained": _row(
        "attention92", 80.5, 95.2, 51.3, 10.4, size=320, params_differ=BIGGER, gflops_differ=AT_224
    ),
    "va_attentionnext56.untrained": _row("attentionnext56", 78.8, 94.4, 31.9, 6.3),
    "va_attentionnext92.untrained": _row("attentionnext92"),
}

MICRO = {"depths": [1, 1, 1, 1], "embed_dim": 8, "groups": 4}
RESIDUAL_ATTENTION = Family(
    "residual_attention", "Residual attention network", (PAPER,), "", ORIGIN, residual_attention, (CAFFE,),
    "residual_attention_network", _from_reference, "stem.conv",
    {"va_attention56": MICRO},
)  # fmt: skip
register(__name__, RESIDUAL_ATTENTION, VARIANTS, WEIGHTS)
