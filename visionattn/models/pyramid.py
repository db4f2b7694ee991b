# SPDX-License-Identifier: Apache-2.0
"""The plain pyramid: overlapping convolutions around any token mixers, stage by stage, for comparisons between them.

Stem, downsamplers and proportions are NAT's; what the mixers are is the user's affair.

Paper: MetaFormer Is Actually What You Need for Vision, arXiv 2111.11418 (the host without a mixer of its own).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from visionattn.layers import MIXERS, pick

from ._pyramid import Pyramid
from ._reference import no_records
from ._registry import Family, Paper, Published, register

PAPER = Paper("MetaFormer Is Actually What You Need for Vision", "2111.11418")
DEPTHS = (3, 4, 18, 5)

# Arguments that one mixer has, or one for each stage.
MixerKwargs = Mapping[str, Any] | Sequence[Mapping[str, Any]]
# Usual arguments of a mixer in a block, from (stage, block, the user's arguments).
Usual = Callable[[int, int, Mapping[str, Any]], dict[str, Any]]

BY_STAGE: dict[str, tuple[dict[str, Any], ...]] = {
    "spatial_reduction": tuple({"reduction": n} for n in (8, 4, 2, 1)),
    "averaged": tuple({"reduction": n} for n in (8, 4, 2, 1)),
    "cross_shaped": tuple({"stripe_width": n} for n in (1, 2, 7, None)),
    "bilevel": tuple({"topk": n} for n in (1, 4, 16, 49)),
    "deformable": tuple({"stride": s, "num_groups": g} for s, g in ((8, 1), (4, 2), (2, 4), (1, 8))),
    "agent": tuple({"num_agents": n} for n in (9, 16, 49, 49)),
    "content": tuple({"num_splits": n} for n in (6, 4, 2, 0)),
}


def _shifted(stage: int, block: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every other block's windows are shifted by half their side."""
    side = given.get("window_size", 7)
    return {"shift": (side if isinstance(side, int) else min(side)) // 2 if block % 2 else 0}


def _dilated(stage: int, block: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every other block's window spans a map of 224 pixels."""
    return {"dilation": (8, 4, 2, 1)[min(stage, 3)] if block % 2 else 1}


# Mixers that differ from block to block: the layer, and what differs.
VARIED: dict[str, tuple[str, Usual]] = {"shifted_window": ("window", _shifted), "dilated": ("neighborhood", _dilated)}
NAMES = (*MIXERS, *VARIED)


def pyramid(
    depths: Sequence[int] = DEPTHS,
    embed_dim: int = 64,
    num_heads: Sequence[int] = (2, 4, 8, 16),
    mixers: str | Sequence[str | Sequence[str]] = "neighborhood",
    mixer_kwargs: MixerKwargs | None = None,
    **kwargs: Any,
) -> Pyramid:
    """Pyramid with any mixers; arguments that usually follow the stage do so, unless they are given.

    Args:
        depths: Blocks of each stage.
        embed_dim: Channels of the first stage; each next has twice as many.
        num_heads: Heads of each stage.
        mixers: Name of the mixer, one of `visionattn.layers.MIXERS`, "shifted_window" or "dilated"; or for each stage
            a name, or a sequence of one for each block.
        mixer_kwargs: Arguments of the mixers: a mapping for all, or one for each stage.
        **kwargs: Of `Pyramid`.

    Raises:
        ValueError: If a mixer is unknown or lengths differ.
    """
    stages = [mixers] * len(depths) if isinstance(mixers, str) else list(mixers)
    given = [mixer_kwargs or {}] * len(depths) if isinstance(mixer_kwargs, Mapping | None) else list(mixer_kwargs)
    for name, values in (("mixers", stages), ("mixer_kwargs", given)):
        if len(values) != len(depths):
            raise ValueError(f"{name}={values} must have one entry for each of the {len(depths)} stages")
    names = [[stage] * n if isinstance(stage, str) else list(stage) for stage, n in zip(stages, depths, strict=True)]
    for stage in names:
        for name in stage:
            pick("mixer", name, dict.fromkeys(NAMES))

    def mixer_args(stage: int, block: int) -> dict[str, Any]:
        return {**usual_args(names[stage][block], stage, block, given[stage]), **given[stage]}

    return Pyramid(
        depths,
        [embed_dim * 2**i for i in range(len(depths))],
        num_heads,
        mixers=[[VARIED[name][0] if name in VARIED else name for name in stage] for stage in names],
        mixer_args=mixer_args,
        **kwargs,
    )


def usual_args(name: str, stage: int, block: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a mixer that follow from its place."""
    if name in VARIED:
        return VARIED[name][1](stage, block, given)
    by_stage = BY_STAGE.get(name, ({},))
    return by_stage[min(stage, len(by_stage) - 1)]


VARIANTS: dict[str, dict[str, Any]] = {
    "va_pyramid_tiny": {"depths": DEPTHS, "mlp_ratio": 3.0, "drop_path_rate": 0.2},
    "va_pyramid_small": {"depths": DEPTHS, "embed_dim": 96, "num_heads": (3, 6, 12, 24), "mlp_ratio": 2.0,
                         "drop_path_rate": 0.3},
    "va_pyramid_base": {"depths": DEPTHS, "embed_dim": 128, "num_heads": (4, 8, 16, 32), "mlp_ratio": 2.0,
                        "drop_path_rate": 0.5},
}  # fmt: skip
WEIGHTS = {f"{name}.untrained": Published(name.removeprefix("va_"), "") for name in VARIANTS}

MICRO: dict[str, Any] = {
    "depths": (2, 2, 1, 1),
    "embed_dim": 16,
    "num_heads": (1, 2, 2, 4),
    "mixers": ("shifted_window", ("dilated", "pooling"), "identity", "global"),
}
PYRAMID = Family(
    "pyramid", "Pyramid", (PAPER,), "", PAPER.url, pyramid, (), "pyramid", no_records, "stem.proj.0",
    {"va_pyramid_tiny": MICRO},
)  # fmt: skip
register(__name__, PYRAMID, VARIANTS, WEIGHTS)
