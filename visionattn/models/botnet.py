# SPDX-License-Identifier: Apache-2.0
"""Bottleneck transformers: ResNets with global attention in place of the 3x3 convolution of their last blocks.

Queries meet learned vectors for the key's offset in rows and columns. The authors published the layer, but no weights;
these are timm's networks and weights.

Paper: Bottleneck Transformers for Visual Recognition, arXiv 2101.11605. Weights: Apache-2.0.
"""

from collections.abc import Mapping
from typing import Any

from ._byob import KEYS, ORIGIN, STAGES, AttentionByobNet, by_timm, from_reference
from ._registry import Family, Paper, Published, register

PAPER = Paper("Bottleneck Transformers for Visual Recognition", "2101.11605")

# Blocks "c" have a convolution, blocks "h" halo attention, blocks "g" global attention.
SMALL = (("cc", 256, 1), ("cc", 512), ("cg", 1024), ("gg", 2048))
VARIANTS: dict[str, dict[str, Any]] = {
    "va_botnet26t": {"stages": SMALL},
    "va_botnet50ts": {
        "stages": (("ccc", 256, 1), ("cccg", 512), ("cgcgcg", 1024), ("cgc", 2048)),
        "act_layer": "silu",
    },
    "va_eca_botnext26ts": {
        "stages": SMALL,
        "bottleneck": {"head_dim": 16},
        "group_size": 16,
        "act_layer": "silu",
        "attn_layer": "eca",
    },
    "va_sebotnet33ts": {
        "stages": (("cc", 256, 1), ("ccg", 512), ("ccg", 1024), ("gg", 1536, 2, 0.333)),
        "stem_pool": "",
        "act_layer": "silu",
        "attn_layer": "se",
        "final_chs": 1280,
    },
    "va_halo2botnet50ts": {
        "stages": (("ccc", 256, 1), ("chch", 512), ("chchch", 1024), ("cgc", 2048)),
        "stem_pool": "",
        "act_layer": "silu",
    },
}


WEIGHTS = {
    "va_botnet26t.c1_in1k": by_timm(
        "botnet26t_256", "c1_in1k", "botnet26t_c1_256-167a0e9f.pth", 79.256, 94.528, 12.49, crop_pct=0.95
    ),
    "va_botnet50ts.untrained": Published("botnet50ts_256", "", size=256, crop_pct=0.95),
    "va_eca_botnext26ts.c1_in1k": by_timm(
        "eca_botnext26ts_256", "c1_in1k", "eca_botnext26ts_c_256-95a898f6.pth", 79.262, 94.6, 10.59, crop_pct=0.95
    ),
    "va_sebotnet33ts.a1h_in1k": by_timm(
        "sebotnet33ts_256", "a1h_in1k", "sebotnet33ts_a1h2_256-957e3c3e.pth", 81.156, 95.16, 13.7, crop_pct=0.94
    ),
    "va_halo2botnet50ts.a1h_in1k": by_timm(
        "halo2botnet50ts_256", "a1h_in1k", "halo2botnet50ts_a1h2_256-fd9c11a3.pth", 82.084, 95.658, 22.64, crop_pct=0.95
    ),
}


def _from_reference(record: Mapping[str, Any]) -> AttentionByobNet:
    return from_reference(record["config"])


MICRO = {
    "stages": (("c", 16, 1), ("c", 16), ("g", 32), ("c", 64)),
    "bottleneck": {"num_heads": 2},
    "img_size": 64,
    "stem_type": "7x7",
    "stem_chs": 16,
}
register(
    __name__,
    Family(
        "botnet", "BoTNet", (PAPER,), "apache-2.0", ORIGIN, AttentionByobNet, (KEYS,), "botnet", _from_reference,
        "stem.conv1.conv", {"va_botnet26t": MICRO}, features=STAGES,
    ),
    VARIANTS,
    WEIGHTS,
)  # fmt: skip
