# SPDX-License-Identifier: Apache-2.0
"""timm's ResNet-50 and MobileNetV2 with gates whose papers describe such networks, but whose authors published none.

Papers: ULSAM, arXiv 2006.15102; DAS, arXiv 2311.12091; Polarized Self-Attention, arXiv 2107.00782; Efficient Attention,
arXiv 1812.01243.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from ._gated import DEPTHS, MICRO, STAGES, gated_mobilenetv2, gated_resnet
from ._reference import no_records
from ._registry import Family, Paper, Published, register

ULSAM = Paper(
    "ULSAM: Ultra-Lightweight Subspace Attention Module for Compact Convolutional Neural Networks", "2006.15102"
)
DAS = Paper("DAS: A Deformable Attention to Capture Salient Information in CNNs", "2311.12091")
POLARIZED = Paper("Polarized Self-Attention: Towards High-quality Pixel-wise Regression", "2107.00782")
EFFICIENT = Paper("Efficient Attention: Attention with Linear Complexities", "1812.01243")

LAST_BLOCKS = ("blocks.4.2", "blocks.5.2")  # of 96 channels at stride 16, of 160 at stride 32


def _add(
    name: str,
    paper: Paper,
    build: Callable[..., nn.Module],
    variants: Mapping[str, Mapping[str, Any]],
    origin: str = "",
    license: str = "",
    is_resnet: bool = True,
) -> None:
    """Registers a family without weights; its first variant is tried at small sizes."""
    first = next(iter(variants))
    family = Family(
        name, f"{paper.title.split(':')[0]}, {'ResNet' if is_resnet else 'MobileNetV2'}", (paper,), license,
        origin or paper.url, build, (), name, no_records, "conv1" if is_resnet else "conv_stem",
        {first: {**MICRO, "block": "bottleneck", "channels": (4, 8, 8, 8)} if is_resnet else {"width_mult": 0.25}},
        classifier="fc" if is_resnet else "classifier", features=STAGES,
    )  # fmt: skip
    weights = {f"{model}.untrained": Published(model.removeprefix("va_"), "") for model in variants}
    register(__name__, family, variants, weights)


_add(
    "ulsam",
    ULSAM,
    partial(gated_mobilenetv2, "ulsam", where=LAST_BLOCKS[1:]),
    {"va_ulsam_mobilenetv2": {}, "va_ulsam_mobilenetv2_96_160": {"where": LAST_BLOCKS}},
    origin="https://github.com/Nandan91/ULSAM",
    is_resnet=False,
)
_add("das", DAS, partial(gated_resnet, "das", where=("layer3", "layer4")), {"va_das_resnet50": DEPTHS[50]})
_add(
    "das_mobilenetv2",
    DAS,
    partial(gated_mobilenetv2, "das", where=LAST_BLOCKS),
    {"va_das_mobilenetv2": {}},
    is_resnet=False,
)
_add(
    "psa_resnet",
    POLARIZED,
    partial(gated_resnet, "polarized", where="layer?.*.act2"),
    {"va_psa_resnet50": DEPTHS[50], "va_psa_s_resnet50": {**DEPTHS[50], "gate_args": {"sequential": True}}},
    origin="https://github.com/DeLightCMU/PSA",
    license="apache-2.0",
)
_add(
    "efficient_attention",
    EFFICIENT,
    partial(gated_resnet, "efficient", where=("layer3", "layer4")),
    {"va_efficient_attention_resnet50": DEPTHS[50]},
    origin="https://github.com/cmsflash/efficient-attention",
    license="mit",
)
