# SPDX-License-Identifier: Apache-2.0
"""Constructor arguments of published references, in our words: what a golden record's `config` means."""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from ._base import VisionModel

# Arguments that change training or memory only, or nothing at all.
WITHOUT_EFFECT = frozenset(
    {"attn_drop_rate", "use_checkpoint", "fused_window_process", "pretrained", "in_patch_size", "drop_path"}
)
SAME = {name: name for name in ("embed_dim", "num_heads", "mlp_ratio", "in_chans", "num_classes", "drop_path_rate",
                                "qkv_bias", "qk_scale", "patch_size", "patch_norm")}  # fmt: skip


def translate(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Our arguments for a reference's.

    Args:
        config: The reference's constructor arguments.
        names: Our name for each of the reference's that is not the same.

    Raises:
        ValueError: If an argument is known to have an effect that we cannot give, or is not known at all.
    """
    known = {**SAME, **names, "drop_rate": "proj_drop_rate"}
    if config.get("norm_layer") not in (None, "LayerNorm"):
        raise ValueError(f"norm_layer={config['norm_layer']!r} must be 'LayerNorm'")
    left = set(config) - set(known) - WITHOUT_EFFECT - {"norm_layer", "out_indices", "frozen_stages"}
    if left:
        raise ValueError(f"arguments {sorted(left)} of the reference have no counterpart; known: {sorted(known)}")
    args = {known[name]: value for name, value in config.items() if name in known}
    # The references write `qk_scale or default`.
    args["qk_scale"] = args.get("qk_scale") or None
    return args


def dense_args(config: Mapping[str, Any], stages: int) -> dict[str, Any]:
    """Arguments that make a pyramid the dense-prediction backbone of its reference."""
    norms = tuple(config.get("out_indices", range(stages)))
    return {"output_norms": norms, "final_norm": stages - 1 in norms, "num_classes": 0}


def no_records(record: Mapping[str, Any]) -> None:
    """`from_reference` of a family that golden records do not cover by themselves."""


def freeze(model: VisionModel, config: Mapping[str, Any]) -> VisionModel:
    """Freezes what the reference's `frozen_stages` freezes: 0 the stem, 1 also the positions, n also n - 1 stages."""
    frozen = config.get("frozen_stages", -1)
    if frozen >= 0:
        model.freeze(max(frozen - 1, 0))
        model.pos_embed.requires_grad_(frozen == 0)
    return model


def source_file(record: Mapping[str, Any]) -> PurePosixPath:
    """File of the reference's repository that the record was computed with."""
    return PurePosixPath(record["source"]["file"])


def dilation_lists(config: Mapping[str, Any]) -> tuple[tuple[int, ...], ...] | None:
    """Dilation of every block; the references take None for 1, for a block, a stage or all of them."""
    dilations = config.get("dilations")
    if dilations is None:
        return None
    stages = zip(dilations, config["depths"], strict=True)
    return tuple((1,) * depth if stage is None else tuple(d or 1 for d in stage) for stage, depth in stages)
