# SPDX-License-Identifier: Apache-2.0
"""TNT: timm has the network; here are the names of its authors' files.

Paper: Transformer in Transformer, arXiv 2103.00112. Licence: Apache-2.0.
"""

from torch import Tensor

from ._checkpoint import KeyMap
from ._registry import Paper, Published
from ._served import SIZE_NAMES, Names, reader, serve_timms

PAPER = Paper("Transformer in Transformer", "2103.00112")
ORIGIN = "https://github.com/huawei-noah/Efficient-AI-Backbones"


def _word_positions(table: Tensor, target: Tensor) -> Tensor:
    """`(1, words, C)` as a map `(1, C, h, w)`."""
    return table.transpose(1, 2).reshape(target.shape) if table.numel() == target.numel() else table


TNT_KEYS = (
    (r"^outer_pos$", "patch_pos"),
    (r"^inner_pos$", "pixel_pos", _word_positions),
    (r"^patch_embed\.", "pixel_embed."),
    (r"\bproj_norm([12])\.", r"norm\1_proj."),
    (r"\.inner_norm1\.", ".norm_in."),
    (r"\.inner_norm2\.", ".norm_mlp_in."),
    (r"\.inner_(attn|mlp)\.", r".\1_in."),
    (r"\.outer_norm1\.", ".norm_out."),
    (r"\.outer_norm2\.", ".norm_mlp."),
    (r"\.outer_attn\.", ".attn_out."),
    (r"\.outer_mlp\.", ".mlp."),
)
# Frozen and used by nothing.
TNT = KeyMap("TNT", TNT_KEYS, constants=(r"^outer_tokens$",))

NAMES: Names = {
    **SIZE_NAMES, "patch_size": "patch_size", "outer_dim": "embed_dim", "inner_dim": "inner_dim", "depth": "depth",
    "outer_num_heads": "num_heads_outer", "inner_num_heads": "num_heads_inner", "qkv_bias": "qkv_bias",
    "inner_stride": "first_stride",
}  # fmt: skip

PIXELS = {"crop_pct": 0.9, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def _tnt(variant: str, size: str, params: float, gflops: float, top1: float) -> Published:
    return Published(variant, f"{ORIGIN}/releases/download/tnt/tnt_{size}_{top1}.pth.tar", top1, None, params, gflops,
                     **PIXELS)  # type: ignore[arg-type]  # fmt: skip


WEIGHTS = {
    "tnt_s_patch16_224.in1k": _tnt("tnt_s_patch16_224", "s", 23.8, 5.2, 81.5),
    "tnt_b_patch16_224.in1k": _tnt("tnt_b_patch16_224", "b", 65.6, 14.1, 82.9),
}

serve_timms(
    "tnt", "TNT", PAPER, "apache-2.0", ORIGIN, key_maps=(TNT,), reader=reader("tnt_s_patch16_224", NAMES),
    weights=WEIGHTS,
)  # fmt: skip
