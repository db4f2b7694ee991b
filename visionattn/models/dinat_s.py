# SPDX-License-Identifier: Apache-2.0
"""DiNAT_s: Swin's skeleton with neighborhood attention for windows and dilated neighborhood attention for shifts.

Paper: Dilated Neighborhood Attention Transformer, arXiv 2209.15001. Weights: MIT.
"""

from collections.abc import Mapping
from typing import Any

from ._pyramid import Pyramid
from ._reference import source_file
from ._registry import Family, register
from .nat import (
    AT_384,
    CROPS_640,
    DINAT_PAPER,
    FULL,
    KEYS,
    MICRO_DILATED,
    ONE_K,
    ORIGIN,
    PRE,
    alternating,
    figures,
    from_reference,
    nat,
    results,
)


def dinat_s(stem: str = "patch", downsample: str = "merge", **kwargs: Any) -> Pyramid:
    """Pyramid of dilated neighborhood attention on patches; `kwargs` are those of `nat`."""
    return nat(stem=stem, downsample=downsample, **kwargs)


def _from_reference(record: Mapping[str, Any]) -> Pyramid | None:
    if source_file(record).name != "dinats.py":
        return None
    return from_reference(record, stem="patch", downsample="merge")


def _variant(dim: int, heads: int, depth: int, rate: float, last: tuple[int, ...] = (8, 4, 2, 1)) -> dict[str, Any]:
    depths = (2, 2, depth, 2)
    return {
        "embed_dim": dim,
        "depths": depths,
        "num_heads": tuple(heads * 2**i for i in range(4)),
        "mlp_ratio": 4.0,
        "drop_path_rate": rate,
        "dilations": alternating(depths, last),
    }


VARIANTS = {
    "va_dinat_s_tiny": _variant(96, 3, 6, 0.2),
    "va_dinat_s_small": _variant(96, 3, 18, 0.3),
    "va_dinat_s_base": _variant(128, 4, 18, 0.5),
    "va_dinat_s_large": _variant(192, 6, 18, 0.35),
    "va_dinat_s_large_384": _variant(192, 6, 18, 0.35, (13, 6, 3, 1)),
}
WEIGHTS = {
    "va_dinat_s_tiny.in1k": figures("dinat_s_tiny", f"{ONE_K}/dinat_s_tiny_in1k_224.pth", 81.8, 28, 4.5),
    "va_dinat_s_small.in1k": figures("dinat_s_small", f"{ONE_K}/dinat_s_small_in1k_224.pth", 83.5, 50, 8.7),
    "va_dinat_s_base.in1k": figures("dinat_s_base", f"{ONE_K}/dinat_s_base_in1k_224.pth", 83.8, 88, 15.4),
    "va_dinat_s_large.in22k_ft_in1k": figures(
        "dinat_s_large", f"{ONE_K}/dinat_s_large_in1k_224.pth", 86.5, 197, 34.5),
    "va_dinat_s_large.in22k": figures(
        "dinat_s_large_21k", f"{FULL}/dinat_s_large_in22k_224.pth", None, 197, 34.5, **PRE),
    "va_dinat_s_large_384.in22k_ft_in1k": figures(
        "dinat_s_large_384", f"{ONE_K}/dinat_s_large_in1k_384.pth", 87.4, 197, 101.5, **AT_384),
}  # fmt: skip

DINAT_S = Family(
    "dinat_s", "DiNAT_s", (DINAT_PAPER,), "mit", ORIGIN, dinat_s, (KEYS,), "dinat", _from_reference,
    micros={"va_dinat_s_tiny": MICRO_DILATED}, dense_args={"*": {"output_norms": True}},
)  # fmt: skip
DENSE = {
    "va_dinat_s_tiny.in1k": results((46.6, 42.1), (51.0, 44.1), (46.0, 47.4)),
    "va_dinat_s_small.in1k": results((48.6, 43.5), (52.3, 45.2), (48.6, 49.9)),
    "va_dinat_s_base.in1k": results(None, (52.6, 45.3), (49.4, 50.2)),
    "va_dinat_s_large.in22k": results(None, (54.8, 47.2), (53.4, 54.6), CROPS_640),
}
register(__name__, DINAT_S, VARIANTS, WEIGHTS, DENSE)
