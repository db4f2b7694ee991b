# SPDX-License-Identifier: Apache-2.0
"""Vision Mamba: selective scans over the patches in both directions, around a class token in their middle.

Paper: Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model, arXiv 2401.09417.
Weights: Apache-2.0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ._checkpoint import KeyMap, grid_of
from ._registry import Family, Paper, Published, register
from ._vim import Vim, VimPyramid

PAPER = Paper(
    "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model", "2401.09417"
)
ORIGIN = "https://github.com/hustvl/Vim"


def vim(
    embed_dim: int = 192,
    depth: int = 24,
    d_state: int = 16,
    average: bool = True,
    norm_layer: str = "rms",
    taps: Sequence[int] | None = None,
    **kwargs: Any,
) -> Vim:
    """Vision Mamba.

    Args:
        embed_dim: Channels.
        depth: Blocks.
        d_state: Numbers in the state of a channel.
        average: Whether the two directions are averaged, not added.
        norm_layer: Name of the norms, one of `visionattn.layers.NORMS`.
        taps: Blocks whose maps a backbone for detection or segmentation hands out; None for the classifier.
        **kwargs: Of `visionattn.models._vim.Vim`; with taps of `VimPyramid`.
    """
    shared = {"depth": depth, "dim": embed_dim, "norm_layer": norm_layer, **kwargs}
    shared.setdefault("mixer_args", {"d_state": d_state, "average": average})
    return Vim(**shared) if taps is None else VimPyramid(taps, **shared)


# --- names of parameters ----------------------------------------------------------------------------------------------


def _class_first(table: Tensor, target: Tensor) -> Tensor:
    """`(1, 1 + N, C)` with the class token's vector in the middle to `(1 + N, C)` with it first."""
    middle = (table.shape[1] - 1) // 2
    return torch.cat([table[0, middle : middle + 1], table[0, :middle], table[0, middle + 1 :]])


def _table(table: Tensor, target: Tensor) -> Tensor:
    """`(1, N, C)` to `(N, C)`, or to planes `(C, H, W)` where the target is such; a class token's vector is dropped."""
    if target.ndim != 3:
        return table[0]
    size = (target.shape[1], target.shape[2])
    grid, rows = grid_of(table.shape[1], size), table[0]
    if grid is None:
        grid, rows = grid_of(table.shape[1] - 1, size), _class_first(table, target)[1:]
    return table[0] if grid is None else rows.t().unflatten(1, grid)


BLOCKS = (
    (r"^patch_embed\.", "stem."),
    (r"^layers\.", "blocks."),
    (r"^(blocks\.\d+\.)norm\.", r"\1norm1."),
    (r"\.mixer\.", ".attn."),
    (r"\.attn\.(conv1d|x_proj|dt_proj)_b\.", r".attn.scans.1.\1."),
    (r"\.attn\.(conv1d|x_proj|dt_proj)\.", r".attn.scans.0.\1."),
    (r"\.attn\.A_b_log$", ".attn.scans.1.A_log"),
    (r"\.attn\.D_b$", ".attn.scans.1.D"),
    (r"\.attn\.(A_log|D)$", r".attn.scans.0.\1"),
    (r"\.conv1d\.", ".conv."),
    (r"\.dt_proj\.", ".dt_"),
    (r"^norm_f\.", "norm."),
    (r"^head\.", "head.fc."),
    (r"^fpn(\d)\.", lambda found: f"necks.{int(found[1]) - 1}."),
    (r"^necks\.0\.1\.", "necks.0.1.bn."),
)
CONSTANTS = (r"^rope\.freqs_(?:cos|sin)$",)
MIDDLE = KeyMap(
    "hustvl",
    (*BLOCKS, (r"^cls_token$", "pos_embed.tokens.class_token", lambda tensor, target: tensor.flatten()),
     (r"^pos_embed$", "pos_embed.tokens.table", _class_first)),
    CONSTANTS,
)  # fmt: skip
FIRST = KeyMap(
    "hustvl, class token first",
    (*BLOCKS, (r"^cls_token$", "pos_embed.class_token", lambda tensor, target: tensor.flatten()),
     (r"^pos_embed$", "pos_embed.table", _table)),
    CONSTANTS,
)  # fmt: skip
# Backbones start from classifiers without their class token, which may be left out where the head may.
WITHOUT = KeyMap(
    "hustvl, no class token",
    (*BLOCKS, (r"^cls_token$", "head.class_token"), (r"^pos_embed$", "pos_embed.table", _table)),
    CONSTANTS,
)


# --- golden records ---------------------------------------------------------------------------------------------------

RENAMED = {"img_size": "img_size", "patch_size": "patch_size", "stride": "patch_stride", "embed_dim": "embed_dim",
           "depth": "depth", "d_state": "d_state", "num_classes": "num_classes", "if_divide_out": "average",
           "drop_path_rate": "drop_path_rate"}  # fmt: skip
FIXED = {"bimamba_type": "v2", "if_abs_pos_embed": True, "pt_hw_seq_len": 14}
# How numbers are kept, and what the pooling's name does not decide.
WITHOUT_EFFECT = {"residual_in_fp32", "fused_add_norm", "final_pool_type"}
READ = {"rms_norm", "if_cls_token", "use_middle_cls_token", "if_rope", "if_rope_residual", "out_indices", "if_fpn",
        "use_residual_as_feature", "last_layer_process"}  # fmt: skip
DENSE_ENTRIES = ("VisionMambaSeg", "VisionMambaDet")
ENDS = {"none": "mixer", "add": "residual", "add & norm": "norm"}


def _from_reference(record: Mapping[str, Any]) -> Vim:
    config = record["config"]
    wrong = {name: config[name] for name, value in FIXED.items() if config.get(name, value) != value}
    left = set(config) - set(RENAMED) - set(FIXED) - WITHOUT_EFFECT - READ
    if wrong or left:
        raise ValueError(f"arguments {wrong} of the reference must be {FIXED}; {sorted(left)} have no counterpart")
    rotary = config.get("if_rope", False)
    if rotary and not config["if_rope_residual"]:
        raise ValueError("if_rope=True needs if_rope_residual=True")
    args = {RENAMED[name]: value for name, value in config.items() if name in RENAMED}
    args["norm_layer"] = "rms" if config["rms_norm"] else "layer"
    entry = record["source"]["entry"]
    if entry not in DENSE_ENTRIES:
        place = "middle" if config["use_middle_cls_token"] else "first"
        return vim(class_token=place if config["if_cls_token"] else "none", **args)
    detects = entry == "VisionMambaDet"
    return vim(
        taps=[config["depth"] - 1] if detects else config["out_indices"],
        tap="residual" if detects or config.get("use_residual_as_feature") else "mixer",
        last=ENDS[config.get("last_layer_process", "none")],
        necks=config.get("if_fpn", False),
        final_norm=not detects,
        rotary=rotary,
        **{"num_classes": 0, **args},
    )


def _outputs(model: Vim, x: Tensor) -> dict[str, Tensor]:
    if isinstance(model, VimPyramid):
        _, features = model.forward_intermediates(x)
        return {f"features.{i}": feature for i, feature in enumerate(features) if isinstance(feature, Tensor)}
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    return {"logits": model.get_classifier()(pooled), "pooled": pooled}


# --- the zoo ----------------------------------------------------------------------------------------------------------

# Drop-path rates stand in the authors' training scripts: none for the tiny model, 0.05 for the small one.
SIZES: dict[str, dict[str, Any]] = {"tiny": {}, "small": {"embed_dim": 384}, "base": {"embed_dim": 768}}
VARIANTS = {f"va_vim_{size}": args for size, args in SIZES.items()} | {
    f"va_vim_{size}_stride8": {**SIZES[size], "patch_stride": 8} for size in ("tiny", "small")
}
FIGURES = {  # top-1, top-5, millions of parameters
    "tiny": (76.1, 93.0, 7),
    "tiny_stride8": (78.3, 94.2, 7),
    "small": (80.5, 95.1, 26),
    "small_stride8": (81.6, 95.4, 26),
    "base": (81.9, 95.8, 98),
}


def _published(name: str) -> Published:
    size, _, stride = name.partition("_")
    token = "middle_cls_token" if size == "base" else "midclstok"
    entry = "_".join(part for part in ("vim", size, "patch16", stride, "224") if part)
    both = ", those of both strides among them" if size != "base" else ""
    return Published(
        f"{entry}_bimambav2_final_pool_mean_abs_pos_embed_with_{token}_div2",
        f"https://huggingface.co/hustvl/Vim-{size}-midclstok",
        *FIGURES[name],
        is_page=True,
        note=f"Files of Vim-{size} lie in a repository{both}, to be downloaded by hand",
    )


WEIGHTS = {f"va_vim_{name}.in1k": _published(name) for name in FIGURES}
VIM = Family(
    "vim", "Vision Mamba", (PAPER,), "apache-2.0", ORIGIN, vim, (MIDDLE, FIRST, WITHOUT), "vim", _from_reference,
    micros={"va_vim_tiny": {"embed_dim": 24, "depth": 3, "d_state": 4, "patch_size": 8, "img_size": 64}},
    outputs=_outputs,
)  # fmt: skip
register(__name__, VIM, VARIANTS, WEIGHTS)
