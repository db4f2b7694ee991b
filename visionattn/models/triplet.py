# SPDX-License-Identifier: Apache-2.0
"""ResNets and MobileNetV2 with triplet attention in every block.

Three gates of a few dozen weights each look at the map from its three sides: channels and width, height and channels,
height and width.

Paper: Rotate to Attend: Convolutional Triplet Attention Module, arXiv 2010.03045. Weights: MIT.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from timm.models.efficientnet import EfficientNet
from timm.models.resnet import ResNet

from ._checkpoint import KeyMap
from ._gated import DEPTHS, MICRO, STAGES, gated_mobilenetv2, gated_resnet, on_drive, resnet_args
from ._reference import source_file
from ._registry import Dense, Family, Paper, Published, register

PAPER = Paper("Rotate to Attend: Convolutional Triplet Attention Module", "2010.03045")
ORIGIN = "https://github.com/LandskapeAI/triplet-attention"

triplet_resnet = partial(gated_resnet, "triplet")
triplet_mobilenetv2 = partial(gated_mobilenetv2, "triplet")

# The module alone has the first three names, the same inside a network the others.
GATE = (
    (r"\bcw\.conv\.", "channel_width."),
    (r"\bhc\.conv\.", "height_channel."),
    (r"\bhw\.conv\.", "spatial."),
    (r"\bChannelGateH\.spatial\.", "channel_width."),
    (r"\bChannelGateW\.spatial\.", "height_channel."),
    (r"\bSpatialGate\.spatial\.", "spatial."),
)
COUNTERS = (r"num_batches_tracked$",)
RESNET_KEYS = KeyMap("triplet-attention", ((r"\.triplet_attention\.", ".drop_path.gate."), *GATE), optional=COUNTERS)

STARTS = (1, 2, 4, 7, 11, 14, 17)  # the authors' number of the first block of each stage


def _block(match: re.Match[str]) -> str:
    """Where the authors' numbered block is in timm, and what its numbered parts are called."""
    number, part = int(match[1]), match[2]
    stage = max(i for i, start in enumerate(STARTS) if start <= number)
    block = number - STARTS[stage]
    parts = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
    names = dict(zip(("0.0", "0.1", "1.0", "1.1", "2", "3"), parts, strict=True))
    if stage == 0:  # nothing is expanded
        names = dict(zip(("0.0", "0.1", "1", "2"), ("conv_dw", "bn1", "conv_pw", "bn2"), strict=True))
    gate = "drop_path.gate" if block > 0 else "gate"  # the first block of a stage has no shortcut
    return f"blocks.{stage}.{block}.{names.get(part, gate)}."


MOBILENET_KEYS = KeyMap(
    "triplet-attention",
    (
        (r"^features\.0\.0\.", "conv_stem."),
        (r"^features\.0\.1\.", "bn1."),
        (r"^features\.18\.0\.", "conv_head."),
        (r"^features\.18\.1\.", "bn2."),
        (r"^classifier\.1\.", "classifier."),
        (r"^features\.(\d+)\.conv\.(\d(?:\.\d)?)\.", _block),
        *GATE,
    ),
    optional=COUNTERS,
)


def _gate_args(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"gate_args": {"kernel_size": config["kernel_size"]}}


def _resnet_from_reference(record: Mapping[str, Any]) -> ResNet | None:
    config = record["config"]
    if source_file(record).name != "resnet.py":
        return None
    return triplet_resnet(**_gate_args(config), **resnet_args(config))


def _mobilenet_from_reference(record: Mapping[str, Any]) -> EfficientNet | None:
    config = record["config"]
    if source_file(record).name != "mobilenet.py":
        return None
    sizes = {name: config[name] for name in ("num_classes", "width_mult")}
    return triplet_mobilenetv2(**_gate_args(config), **sizes)


K3: dict[str, Any] = {"gate_args": {"kernel_size": 3}}
RESNETS = {
    **{f"va_triplet_resnet{n}": args for n, args in DEPTHS.items()},
    **{f"va_triplet_resnet{n}_k3": {**DEPTHS[n], **K3} for n in (18, 50)},
}
RESNET_WEIGHTS = {
    "va_triplet_resnet18.in1k": on_drive(
        "resnet18_triplet_k7", "file/d/1jIDfA0Psce10L06hU0Rtz8t7s2U1oqLH/view?usp=sharing", 71.09, 89.99, 11.69, 1.825),
    "va_triplet_resnet18_k3.in1k": on_drive(
        "resnet18_triplet_k3", "file/d/1p3_s2kA5NFWqCtp4zvZdc91_2kEQhbGD/view?usp=sharing", 70.33, 89.58, 11.69, 1.823),
    "va_triplet_resnet34.untrained": Published("resnet34_triplet_k7", ""),
    "va_triplet_resnet50.in1k": on_drive(
        "resnet50_triplet_k7", "open?id=1ptKswHzVmULGbE3DuX6vMCjEbqwUvGiG", 77.48, 93.674, 25.56, 4.169),
    "va_triplet_resnet50_k3.in1k": on_drive(
        "resnet50_triplet_k3", "open?id=1W6aDE6wVNY9NwgcM7WMx_vRhG2-ZiMur", 76.12, 93.062, 25.56, 4.131),
    "va_triplet_resnet101.untrained": Published("resnet101_triplet_k7", ""),
}  # fmt: skip
DROPOUT: dict[str, Any] = {"drop_rate": 0.25}
MOBILENETS = {"va_triplet_mobilenetv2": DROPOUT, "va_triplet_mobilenetv2_k3": {**DROPOUT, **K3}}
MOBILENET_WEIGHTS = {
    "va_triplet_mobilenetv2.in1k": on_drive(
        "mobilenetv2_triplet_k7", "file/d/14iNMa7ygtTwsULsAydKoQuTkJ288hfKs/view?usp=sharing", 71.99, 90.484, 3.51,
        0.327),
    "va_triplet_mobilenetv2_k3.in1k": on_drive(
        "mobilenetv2_triplet_k3", "file/d/1KIlqPBNLHh4qkdxyojb5gQhM5iB9b61_/view?usp=sharing", 72.62, 90.77, 3.506,
        0.322),
}  # fmt: skip

RESNET = Family(
    "triplet", "Triplet attention, ResNet", (PAPER,), "mit", ORIGIN, triplet_resnet, (RESNET_KEYS,), "triplet",
    _resnet_from_reference, "conv1", {"va_triplet_resnet18": MICRO}, classifier="fc", features=STAGES,
)  # fmt: skip
MOBILENET = Family(
    "triplet_mobilenetv2", "Triplet attention, MobileNetV2", (PAPER,), "mit", ORIGIN, triplet_mobilenetv2,
    (MOBILENET_KEYS,), "triplet", _mobilenet_from_reference, "conv_stem",
    {"va_triplet_mobilenetv2": {"width_mult": 0.2, **K3}}, classifier="classifier", features=STAGES,
)  # fmt: skip
DENSE = {
    "va_triplet_resnet50.in1k": (
        Dense("Faster R-CNN 1x, Detectron2", 39.2),
        Dense("RetinaNet 1x, Detectron2", 38.2),
        Dense("Mask R-CNN 1x, Detectron2", 39.8, 35.8),
        Dense("Faster R-CNN 1x, MMDetection", 39.3),
        Dense("RetinaNet 1x, MMDetection", 37.6),
    ),
}
register(__name__, RESNET, RESNETS, RESNET_WEIGHTS, DENSE)
register(__name__, MOBILENET, MOBILENETS, MOBILENET_WEIGHTS)
