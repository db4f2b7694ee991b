# SPDX-License-Identifier: Apache-2.0
"""ResNets with CBAM in every residual block, or with BAM after each of the first three stages.

Both weigh channels and positions: CBAM one after the other, on the residual branch, BAM at once, between stages.

Papers: CBAM: Convolutional Block Attention Module, arXiv 1807.06521; BAM: Bottleneck Attention Module,
arXiv 1807.06514. Weights: MIT.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from timm.models.resnet import ResNet

from ._checkpoint import KeyMap
from ._gated import DEPTHS, MICRO, STAGES, gated_resnet, on_drive, resnet_args
from ._registry import Family, Paper, Published, register

CBAM_PAPER = Paper("CBAM: Convolutional Block Attention Module", "1807.06521")
BAM_PAPER = Paper("BAM: Bottleneck Attention Module", "1807.06514")
ORIGIN = "https://github.com/Jongchan/attention-module"

cbam = partial(gated_resnet, "cbam")
bam = partial(gated_resnet, "bam", where=("layer1", "layer2", "layer3"), gate_args={"square_pool": True})

KEYS = KeyMap(
    "attention-module",
    (
        (r"\.cbam\.", ".drop_path.gate."),
        (r"\.ChannelGate\.mlp\.1\.", ".channel.fc1."),
        (r"\.ChannelGate\.mlp\.3\.", ".channel.fc2."),
        (r"\.SpatialGate\.spatial\.", ".spatial."),
        (r"^bam(\d)\.", r"layer\1.gate."),
        (r"channel_att\.gate_c\.gate_c_fc_0\.", "channel.0."),
        (r"channel_att\.gate_c\.gate_c_bn_1\.", "channel.1."),
        (r"channel_att\.gate_c\.gate_c_fc_final\.", "channel.3."),
        (r"spatial_att\.gate_s\.gate_s_conv_final\.", "spatial.3."),
        (r"spatial_att\.gate_s\.gate_s_conv_reduce0\.", "spatial.0.0."),
        (r"spatial_att\.gate_s\.gate_s_bn_reduce0\.", "spatial.0.1."),
        (r"spatial_att\.gate_s\.gate_s_conv_di_(\d)\.", lambda m: f"spatial.{int(m[1]) + 1}.0."),
        (r"spatial_att\.gate_s\.gate_s_bn_di_(\d)\.", lambda m: f"spatial.{int(m[1]) + 1}.1."),
    ),
    optional=(r"num_batches_tracked$",),
)


def _cbam_from_reference(record: Mapping[str, Any]) -> ResNet | None:
    gates: dict[str | None, str | None] = {"CBAM": "cbam", None: None}
    kind = record["config"]["att_type"]
    return gated_resnet(gates[kind], **resnet_args(record["config"])) if kind in gates else None


def _bam_from_reference(record: Mapping[str, Any]) -> ResNet | None:
    return bam(**resnet_args(record["config"])) if record["config"]["att_type"] == "BAM" else None


STRIDES = (
    "The published multiply-adds are those of a ResNet whose 1x1 convolutions have the strides; in the published code, "
    "which the weights were trained with, the 3x3 convolutions have them"
)
CBAM_WEIGHTS = {
    "va_cbam_resnet18.untrained": Published("resnet18_cbam", ""),
    "va_cbam_resnet34.untrained": Published("resnet34_cbam", ""),
    "va_cbam_resnet50.in1k": on_drive(
        "resnet50_cbam", "file/d/1mvAVvhLR_2XY_bPYxh-SEz4vDmGzSArO/view?usp=sharing", 77.622, 93.948, 28.09,
        3.864, gflops_differ=STRIDES),
    "va_cbam_resnet101.untrained": Published("resnet101_cbam", ""),
}  # fmt: skip
BAM_WEIGHTS = {
    "va_bam_resnet18.untrained": Published("resnet18_bam", ""),
    "va_bam_resnet34.untrained": Published("resnet34_bam", ""),
    "va_bam_resnet50.in1k": on_drive(
        "resnet50_bam", "file/d/1auVf70gfL0ol40bvaX5rlbpn9cKIxhAL/view?usp=sharing", 76.86, 93.416, 25.92
    ),
    "va_bam_resnet101.untrained": Published("resnet101_bam", ""),
}


def _family(name: str, paper: Paper, build: Callable[..., ResNet], from_reference: Callable[..., Any]) -> Family:
    micros = {f"va_{name}_resnet18": MICRO, f"va_{name}_resnet50": {**MICRO, "channels": (4, 8, 8, 8)}}
    return Family(
        name, f"{name.upper()}-ResNet", (paper,), "mit", ORIGIN, build, (KEYS,), "cbam", from_reference, "conv1",
        micros, classifier="fc", features=STAGES,
    )  # fmt: skip


register(
    __name__,
    _family("cbam", CBAM_PAPER, cbam, _cbam_from_reference),
    {f"va_cbam_resnet{n}": args for n, args in DEPTHS.items()},
    CBAM_WEIGHTS,
)
register(
    __name__,
    _family("bam", BAM_PAPER, bam, _bam_from_reference),
    {f"va_bam_resnet{n}": args for n, args in DEPTHS.items()},
    BAM_WEIGHTS,
)
