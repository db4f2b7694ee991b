# SPDX-License-Identifier: Apache-2.0
"""OverLoCK: an overview of the image first, then a closer look with large kernels that it tells.

Paper: OverLoCK: An Overview-first-Look-Closely-next ConvNet with Context-Mixing Dynamic Kernels, arXiv 2502.20087.
Weights: Apache-2.0.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ._checkpoint import KeyMap, pointwise, to_stage
from ._overlock import OverLoCK
from ._reference import source_file
from ._registry import Dense, Family, Paper, Published, register

PAPER = Paper("OverLoCK: An Overview-first-Look-Closely-next ConvNet with Context-Mixing Dynamic Kernels", "2502.20087")
ORIGIN = "https://github.com/LMMMEng/OverLoCK"


def overlock(**kwargs: Any) -> OverLoCK:
    """Convolutional network that looks twice; arguments as `OverLoCK` takes them."""
    return OverLoCK(**kwargs)


def vector(tensor: Tensor, target: Tensor) -> Tensor:
    """Factors of channels without axes of size 1."""
    return tensor.flatten() if target.ndim == 1 else tensor


AUTHORS = KeyMap(
    "OverLoCK",
    (
        (r"^patch_embed1\.", "stem."),
        (r"^patch_embed([23])\.", to_stage("down.", 2)),
        (r"^blocks([123])\.", to_stage("blocks.")),
        (r"^patch_embed4\.", "stages.2.overview.down."),
        (r"^blocks4\.", "stages.2.overview.blocks."),
        (r"^high_level_proj\.", "stages.2.overview.proj."),
        (r"^sub_blocks([34])\.", to_stage("focus.")),
        (r"^patch_embedx\.x_proj\.", "stages.2.down.map."),
        (r"^patch_embedx\.h_proj\.", "stages.2.down.context."),
        (r"^extra_norm\.1\.", "stages.1.norm."),
        (r"^extra_norm\.4\.", "overview_neck.norm."),
        (r"^extra_norm\.", "output_norms."),
        (r"^h_proj\.0\.", "overview_neck.proj."),
        (r"^h_proj\.1\.", "overview_neck.scale.", vector),
        (r"^head\.4\.", "head.fc.", pointwise),
        (r"^head\.([01])\.", r"head.pre_logits.\1."),
        (r"^aux_head\.0\.", "head.aux.norm."),
        (r"^aux_head\.2\.", "head.aux.fc.", pointwise),
        # Blocks.
        (r"\.lk_origin\.", ".conv."),
        (r"\.origin_bn\.", ".norm."),
        (r"\.dil_conv_(k\d+_\d+)\.", r".branches.\1.conv."),
        (r"\.dil_bn_(k\d+_\d+)\.", r".branches.\1.norm."),
        (r"\.(?:se_layer|proj\.3)\.proj\.1\.", ".se.fc1."),
        (r"\.(?:se_layer|proj\.3)\.proj\.3\.", ".se.fc2."),
        (r"\.gamma$", ".weight", vector),
        (r"\.beta$", ".bias", vector),
        (r"\.(ls[12]?|x_scale|h_scale)\.weight$", r".\1.weight", vector),
        (r"\.ls([12]?)\.", r".sum\1.scale."),
        (r"\.x_scale\.", ".renewed_scale."),
        (r"\.h_scale\.", ".given_scale."),
        (r"(\.blocks\.\d+)\.proj\.0\.", r"\1.norm."),
        (r"(\.blocks\.\d+)\.proj\.1\.", r"\1.conv."),
        (r"(\.blocks\.\d+)\.proj\.2\.", r"\1.conv_norm."),
        (r"(\.blocks\.\d+)\.proj\.4\.", r"\1.mlp.0."),
        (r"(\.blocks\.\d+)\.proj\.([678])\.", lambda m: f"{m[1]}.mlp.{int(m[2]) - 4}."),
        (r"(\.focus\.\d+)\.(fusion|gate|lepe|proj|se)\.", r"\1.attn.\2."),
        (r"\.weight_query\.", ".attn.query."),
        (r"\.weight_key\.([12])\.", lambda m: f".attn.key.{int(m[1]) - 1}."),
        (r"\.weight_proj\.", ".attn.taps.", pointwise),
        (r"\.dyconv_proj\.", ".attn.merge."),
        (r"\.rpb1$", ".attn.small_bias.rpb"),
        (r"\.rpb2$", ".attn.large_bias.rpb"),
    ),
    optional=(r"^stages\.1\.norm\.", r"^overview_neck\."),
    spare=(r"^head\.aux\.",),
)  # fmt: skip

SAME = {"projection": "head_dim", "smk_size": "small_kernel_size", "sub_depth": "focus_depths", "depth": "depths",
        "embed_dim": "dims", "kernel_size": "kernel_sizes", "sub_mlp_ratio": "focus_mlp_ratios", "deploy": "fused",
        "ls_init_value": "layer_scale", "res_scale": "scale_input"}  # fmt: skip


def _from_reference(record: Mapping[str, Any]) -> OverLoCK:
    args = {SAME.get(name, name): value for name, value in record["config"].items()}
    args["num_heads"] = [2 * heads for heads in args.pop("sub_num_heads")]
    task = source_file(record).parts[0]
    if task in ("detection", "segmentation"):
        args |= {"output_norms": True, "overview_neck": task == "detection", "num_classes": 0}
    model = overlock(**args)
    if task in ("detection", "segmentation"):
        model.reset_classifier(0, "")
    return model


def _outputs(model: OverLoCK, x: Tensor) -> dict[str, Tensor]:
    if model.num_classes == 0:
        features: Any = model.forward_intermediates(x, intermediates_only=True)
        return {f"features.{i}": feature for i, feature in enumerate(features)}
    last, overview = model.forward_both(x)
    named = {"features.3": last.permute(0, 3, 1, 2), "overview": overview}
    return {**named, "logits": model.forward_head(last), "aux": model.head.aux(overview)}


def _variant(
    depths: tuple[int, ...], focus: tuple[int, int], dims: tuple[int, ...], heads: tuple[int, int], rate: float
) -> dict[str, Any]:
    return {"depths": depths, "focus_depths": focus, "dims": dims, "num_heads": heads, "drop_path_rate": rate}


VARIANTS = {
    "va_overlock_xt": _variant((2, 2, 3, 2), (6, 2), (56, 112, 256, 336), (8, 12), 0.1),
    "va_overlock_t": _variant((4, 4, 6, 2), (12, 2), (64, 128, 256, 512), (8, 16), 0.15),
    "va_overlock_s": _variant((6, 6, 8, 3), (16, 3), (64, 128, 320, 512), (16, 32), 0.4),
    "va_overlock_b": _variant((8, 8, 10, 4), (20, 4), (80, 160, 384, 576), (12, 18), 0.5),
}
FIGURES = {"xt": (82.7, 16, 2.6, 0.925), "t": (84.2, 33, 5.5, 0.95), "s": (84.8, 56, 9.7, 0.95),
           "b": (85.1, 95, 16.7, 0.975)}  # fmt: skip
MERGED = "The published parameters and multiply-adds are those with the branches merged"


def _row(size: str, top1: float, params: float, gflops: float, crop_pct: float, is_fused: bool) -> Published:
    end, args = ("_reparam", {"fused": True}) if is_fused else ("", {})
    url = f"{ORIGIN}/releases/download/v1/overlock_{size}_in1k_224{end}.pth"
    differ = None if is_fused else MERGED
    return Published(
        f"overlock_{size}{end}", url, top1, None, params, gflops, crop_pct=crop_pct, args=args, params_differ=differ,
        gflops_differ=differ,
    )  # fmt: skip


WEIGHTS = {
    f"va_overlock_{size}.{tag}": _row(size, *figures, is_fused)
    for size, figures in FIGURES.items()
    for tag, is_fused in (("in1k", False), ("in1k_fused", True))
}


def _results(short: tuple[float, float], long: tuple[float, float], miou: float) -> tuple[Dense, ...]:
    return Dense("Mask R-CNN 1x", *short), Dense("Mask R-CNN 3x", *long), Dense("UPerNet 160k", miou=miou)


DENSE = {
    "va_overlock_t.in1k": _results((48.3, 43.3), (49.6, 43.9), 50.3),
    "va_overlock_s.in1k": _results((49.4, 44.0), (51.0, 45.0), 51.3),
    "va_overlock_b.in1k": _results((49.9, 44.4), (51.4, 45.3), 51.7),
}

# Lists: nothing here can be left out for fewer stages.
MICRO = {"depths": [1, 1, 1, 1], "focus_depths": [2, 1], "dims": [16, 16, 24, 32], "num_heads": [2, 4],
         "kernel_sizes": [7, 5, 7, 5], "small_kernel_size": 3, "head_dim": 24, "aux_head": False}  # fmt: skip
OVERLOCK = Family(
    "overlock", "OverLoCK", (PAPER,), "apache-2.0", ORIGIN, overlock, (AUTHORS,), "overlock", _from_reference, "stem.0",
    {"va_overlock_xt": MICRO}, counts_attention=False, outputs=_outputs, dense_args={"*": {"output_norms": True}},
)  # fmt: skip
register(__name__, OVERLOCK, VARIANTS, WEIGHTS, DENSE)
