# SPDX-License-Identifier: Apache-2.0
"""What DAT's authors call things: arguments, entries of checkpoints, and which of two generations these are of."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ._checkpoint import KeyMap, pointwise
from ._reference import WITHOUT_EFFECT, dense_args
from .swin import mirrored


def _generation(entries: Mapping[str, Tensor]) -> str | None:
    """Which generation a file is of; "" where it has points but nothing that tells, None where it has no points."""
    names = "\n".join(entries)
    if "offset_conv." in names:  # our names
        return "DAT++" if "attn.on_corners" in names else "DAT" if "attn.on_centers" in names else ""
    if "conv_offset." not in names:
        return None
    later = ("local_perception_units.", "patch_proj.3.", "rpe_table.0.", ".rpb", ".dep_conv.")
    if any(mark in names for mark in later):
        return "DAT++"
    return "DAT" if "relative_position_bias_table" in names else ""


def _refusal(entries: Mapping[str, Tensor], model: nn.Module) -> str | None:
    """Why weights are not of the model's generation."""
    found, wanted = _generation(entries), _generation(model.state_dict())
    if found == wanted or found is None or wanted is None:
        return None
    if not found:
        return f"it may be of DAT or of DAT++, whose shapes agree; nothing in it tells, and the model is {wanted}"
    return (f"it has weights of {found} and the model is {wanted}; shapes may agree, but sampling points lie "
            "elsewhere")  # fmt: skip


def _table(table: Tensor, target: Tensor) -> Tensor:
    """Tables of windows, or of the neighbours of slide attention."""
    return table.reshape(target.shape) if table.ndim == 6 else mirrored(table, target)


def _half(path: str) -> Any:
    """Replacement of an index that counts both halves of every block."""
    return lambda m: f"stages.{m[1]}.blocks.{int(m[2]) // 2}.{path}{int(m[2]) % 2 + 1}."


SHARED = (
    (r"^patch_proj\.1\.norm\.", "stem.norm."),
    (r"^stages\.0\.proj\.", "pos_embed."),
    (r"^stages\.(\d+)\.layer_norms\.(\d+)\.norm\.", _half("norm")),
    (r"^stages\.(\d+)\.layer_scales\.(\d+)\.(?:weight|gamma)$", lambda m: _half("scale")(m) + "gamma"),
    (r"^stages\.(\d+)\.local_perception_units\.(\d+)\.", r"stages.\1.blocks.\2.position.conv."),
    (r"^stages\.(\d+)\.ln_cnvnxt\.(\d+)\.norm\.", r"stages.\1.blocks.\2.norm."),
    (r"^stages\.(\d+)\.(mlp|attn)s\.(\d+)\.", r"stages.\1.blocks.\3.\2."),
    (r"\.attn\.(weight|bias)$", r".conv.\1"),
    (r"\.mlp\.(?:chunk\.)?linear([12])\.(?:0\.)?", r".mlp.fc\1."),
    (r"\.mlp\.dwc\.", ".mlp.conv."),
    (r"\.attn\.conv_offset\.0\.", ".attn.offset_conv."),
    (r"\.attn\.conv_offset\.1\.norm\.", ".attn.offset_norm."),
    (r"\.attn\.conv_offset\.3\.", ".attn.offset_proj."),
    (r"\.attn\.rpe_table\.([02])\.", r".attn.cpb_mlp.\1."),
    (r"\.attn\.rpe_table\.", ".attn.position_conv."),
    (r"\.attn\.rpe_table$", ".attn.rpb"),
    (r"\.attn\.relative_position_bias_table$", ".attn.rpb", _table),
    (r"\.attn\.proj_(qkv|q|k|v)\.", r".attn.\1."),
    (r"\.attn\.proj_out\.", ".attn.proj."),
    (r"\.attn\.proj_ds\.0\.", ".attn.sr."),
    (r"\.attn\.proj_ds\.1\.norm\.", ".attn.norm."),
    (r"\.attn\.dep_conv\.bias$", ".attn.shift_bias"),
    (r"\.attn\.dep_conv1\.", ".attn.conv."),
    (r"^down_projs\.(\d+)\.1\.norm\.", r"stages.\1.down.norm."),
    (r"^norms\.(\d+)\.norm\.", r"output_norms.\1."),
    (r"^cls_norm\.norm\.", "norm."),
    (r"^cls_head\.", "head.fc."),
    (r"((?:pos_embed|\.(?:mlp|attn)\.\w+)\.weight)$", r"\1", pointwise),
)
PATCHES = ((r"^patch_proj\.0\.", "stem.proj."), (r"^down_projs\.(\d+)\.0\.", r"stages.\1.down.proj."))
CONVS = (
    (r"^patch_proj\.0\.", "stem.proj.0."),
    (r"^patch_proj\.1\.norm\.", "stem.mid_norm."),
    (r"^patch_proj\.3\.", "stem.proj.1."),
    (r"^patch_proj\.4\.norm\.", "stem.norm."),
    (r"^down_projs\.(\d+)\.0\.", r"stages.\1.down.reduction."),
)
OVERLAPS = (PATCHES[0], CONVS[-1])
DERIVED = (r"relative_position_index$", r"attn_mask$", r"\.dep_conv\.weight$", r"q_grid", r"reference")


def key_map(title: str, patches: tuple[tuple[Any, ...], ...]) -> KeyMap:
    """Key map for one layout of stem and downsamplers, `PATCHES`, `CONVS` or `OVERLAPS`."""
    return KeyMap(title, (*patches, *SHARED), DERIVED, (r"\.attn\.on_(?:centers|corners)$",), _refusal)


SAME = ("num_classes", "drop_path_rate", "depths", "dims", "img_size", "patch_size", "strides")
NAMES = {**dict.fromkeys(SAME), "expansion": "mlp_ratio", "dim_stem": "stem_dim", "heads": "num_heads",
         "groups": "num_groups", "window_sizes": "window_size", "ksizes": "offset_kernels", "sr_ratios": "reductions",
         "nat_ksizes": "neighborhood_size", "use_lpus": "block_positions", "drop_rate": "proj_drop_rate",
         "use_conv_patches": "conv_patches"}  # fmt: skip
# What `_options` reads.
OPTIONS = {"stage_spec", "use_pes", "dwc_pes", "fixed_pes", "log_cpb", "offset_range_factor", "no_offs", "use_dwc_mlps",
           "layer_scale_values", "out_indices"}  # fmt: skip


def reference_args(title: str, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Our arguments for those of a record of the family of this title; None for one of another.

    Raises:
        ValueError: If an argument of the reference is not known.
    """
    config = record["config"]
    is_first = "ksizes" not in config  # its kernels are fixed
    if title != ("DAT" if is_first else "DAT++" if config["use_conv_patches"] else "DAT+"):
        return None
    left = set(config) - set(NAMES) - OPTIONS - WITHOUT_EFFECT
    if left:
        raise ValueError(f"arguments {sorted(left)} of the reference have no counterpart")
    args = {NAMES[name] or name: value for name, value in config.items() if name in NAMES}
    args |= _options(config, is_first)
    return args | dense_args(config, len(config["depths"])) if "out_indices" in config else args


def _options(config: Mapping[str, Any], is_first: bool) -> dict[str, Any]:
    """Arguments for what the reference says in flags, one a stage."""
    off = [False] * len(config["depths"])
    flags = zip(*(config.get(name, off) for name in ("use_pes", "dwc_pes", "fixed_pes", "log_cpb")), strict=True)
    wide = "depthwise" if is_first else "depthwise_residual"
    return {
        "stage_spec": ["".join(spec) for spec in config["stage_spec"]],
        "position": [_position(*row) for row in flags],
        "sample": ["mean" if idle else "points" for idle in config["no_offs"]],
        "offset_range": [_range(factor, is_first) for factor in config["offset_range_factor"]],
        "mlp": [wide if has else "mlp" for has in config["use_dwc_mlps"]],
        "layer_scale": [value if value > 0 else None for value in config.get("layer_scale_values", [-1] * len(off))],
    }


def _position(used: bool, convolved: bool, dense: bool, network: bool) -> str | None:
    if not used:
        return None
    return "conv" if convolved else "dense" if dense else "mlp" if network else "table"


def _range(factor: float, is_first: bool) -> float | None:
    if factor == 0 and is_first:
        return math.inf
    return factor if factor >= 0 else None
