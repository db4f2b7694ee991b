# SPDX-License-Identifier: Apache-2.0
"""HaloNets: ResNets with blocked local attention in place of some, or all, 3x3 convolutions.

The map is cut into blocks, and all pixels of a block attend to the block and a halo around it. The authors published
neither code nor weights; these are timm's networks and weights.

Paper: Scaling Local Self-Attention for Parameter Efficient Visual Backbones, arXiv 2103.12731. Weights: Apache-2.0.
"""

from collections.abc import Mapping
from typing import Any

from ._byob import KEYS, ORIGIN, STAGES, AttentionByobNet, by_timm, from_reference
from ._registry import Family, Paper, Published, register

PAPER = Paper("Scaling Local Self-Attention for Parameter Efficient Visual Backbones", "2103.12731")

# Blocks "c" have a convolution, blocks "h" attention; the four stages are at strides 4 to 32.
SMALL = (("cc", 256, 1), ("cc", 512), ("ch", 1024), ("hh", 2048))
VARIANTS: dict[str, dict[str, Any]] = {
    "va_halonet26t": {"stages": SMALL, "halo": {"halo_size": 2}},
    "va_halonet50ts": {
        "stages": (("ccc", 256, 1), ("ccch", 512, 2, 0.25, {"num_heads": 4}), ("chchch", 1024), ("chc", 2048)),
        "act_layer": "silu",
    },
    "va_eca_halonext26ts": {
        "stages": SMALL,
        "halo": {"halo_size": 2, "head_dim": 16},
        "group_size": 16,
        "act_layer": "silu",
        "attn_layer": "eca",
    },
    "va_sehalonet33ts": {
        "stages": (("cc", 256, 1), ("cch", 512), ("cch", 1024), ("hh", 1536, 2, 0.333)),
        "stem_pool": "",
        "act_layer": "silu",
        "attn_layer": "se",
        "final_chs": 1280,
    },
    "va_halonet_h1": {
        "stages": (("hhh", 64, 1, 1.0), ("hhh", 128, 2, 1.0), ("h" * 10, 256, 2, 1.0), ("hhh", 512, 2, 1.0)),
        "stem_type": "7x7",
    },
}
REGNETZ_VARIANTS: dict[str, dict[str, Any]] = {
    "va_haloregnetz_b": {
        "stages": (("cc", 48, 2, 3), ("cccccc", 96, 2, 3), ("ccchccchccch", 192, 2, 3), ("hh", 288, 2, 3)),
        "halo": {"block_size": 7, "halo_size": 2, "qk_ratio": 0.33},
        "img_size": 224,
        "stem_type": "3x3",
        "stem_pool": "",
        "stem_chs": 32,
        "group_size": 16,
        "act_layer": "silu",
        "attn_layer": "se",
        "attn_kwargs": {"rd_ratio": 0.25},
        "downsample": "",
        "bottle_in": True,
        "linear_out": True,
        "final_chs": 1536,
    },
}


WEIGHTS = {
    "va_halonet26t.a1h_in1k": by_timm(
        "halonet26t", "a1h_in1k", "halonet26t_a1h_256-3083328c.pth", 79.134, 94.34, 12.48, crop_pct=0.95
    ),
    "va_halonet50ts.a1h_in1k": by_timm(
        "halonet50ts", "a1h_in1k", "halonet50ts_a1h2_256-f3a3daee.pth", 81.64, 95.612, 22.73, crop_pct=0.94
    ),
    "va_eca_halonext26ts.c1_in1k": by_timm(
        "eca_halonext26ts", "c1_in1k", "eca_halonext26ts_c_256-06906299.pth", 79.518, 94.582, 10.76, crop_pct=0.94
    ),
    "va_sehalonet33ts.ra2_in1k": by_timm(
        "sehalonet33ts", "ra2_in1k", "sehalonet33ts_256-87e053f9.pth", 80.976, 95.272, 13.69, crop_pct=0.94
    ),
    "va_halonet_h1.untrained": Published("halonet_h1", "", size=256, crop_pct=0.95),
}
HALF = (0.5, 0.5, 0.5)
REGNETZ_WEIGHTS = {
    "va_haloregnetz_b.ra3_in1k": by_timm(
        "haloregnetz_b", "ra3_in1k", "haloregnetz_c_raa_256-c8ad7616.pth", 81.058, 95.196, 11.68, crop_pct=0.94,
        size=224, mean=HALF, std=HALF)}  # fmt: skip


def _is_regnetz(record: Mapping[str, Any]) -> bool:
    return record["config"]["stem_type"] == "3x3"


def _halonet(record: Mapping[str, Any]) -> AttentionByobNet | None:
    return None if _is_regnetz(record) else from_reference(record["config"])


def _regnetz(record: Mapping[str, Any]) -> AttentionByobNet | None:
    return from_reference(record["config"]) if _is_regnetz(record) else None


MICRO = {
    "stages": (("c", 16, 1), ("c", 16), ("h", 32), ("c", 32)),
    "halo": {"block_size": 4, "halo_size": 1, "num_heads": 2},
    "stem_type": "7x7",
    "stem_chs": 16,
}
REGNETZ_MICRO = {
    "stages": (("c", 16, 2, 1), ("c", 16, 2, 1), ("h", 16, 2, 2), ("c", 16, 2, 2)),
    "halo": {"block_size": 3, "halo_size": 1, "num_heads": 2, "qk_ratio": 0.5},
    "stem_chs": 16,
    "group_size": 8,
    "attn_layer": "",
    "final_chs": 32,
}

register(
    __name__,
    Family(
        "halonet", "HaloNet", (PAPER,), "apache-2.0", ORIGIN, AttentionByobNet, (KEYS,), "halonet", _halonet,
        "stem.conv1.conv", {"va_halonet26t": MICRO}, features=STAGES,
    ),
    VARIANTS,
    WEIGHTS,
)  # fmt: skip
register(
    __name__,
    Family(
        "haloregnetz", "Halo-RegNetZ", (PAPER,), "apache-2.0", ORIGIN, AttentionByobNet, (KEYS,), "halonet", _regnetz,
        "stem.conv", {"va_haloregnetz_b": REGNETZ_MICRO}, features=STAGES,
    ),
    REGNETZ_VARIANTS,
    REGNETZ_WEIGHTS,
)  # fmt: skip
