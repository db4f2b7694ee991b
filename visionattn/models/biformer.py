# SPDX-License-Identifier: Apache-2.0
"""BiFormer: a pyramid whose regions choose the few regions that their pixels attend to.

The last stage attends globally. Besides the authors' layout there is that of Swin-T (STL), in two implementations,
which differ where the regions do not divide the map.

Paper: BiFormer: Vision Transformer with Bi-Level Routing Attention, arXiv 2303.08810. Weights: MIT.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from ._checkpoint import KeyMap, pointwise, to_stage
from ._pyramid import MixerArgs, Pyramid
from ._reference import source_file
from ._registry import Dense, Family, Paper, Published, register

PAPER = Paper("BiFormer: Vision Transformer with Bi-Level Routing Attention", "2303.08810")
ORIGIN = "https://github.com/rayleizhu/BiFormer"
# Heads of the stages that attend globally, whatever the others have.
GLOBAL_HEADS = 8


def biformer(
    depths: Sequence[int] = (4, 4, 18, 4),
    dims: Sequence[int] = (64, 128, 256, 512),
    topks: Sequence[int | None] = (1, 4, 16, None),
    num_regions: int = 7,
    head_dim: int = 32,
    num_heads: Sequence[int] | None = None,
    lepe_kernel: int = 5,
    mlp_ratio: float | Sequence[float] = 3.0,
    patch_layout: bool = False,
    pad_projected: bool = False,
    mixers: str | Sequence[str | Sequence[str]] | None = None,
    mixer_args: MixerArgs | None = None,
    **kwargs: Any,
) -> Pyramid:
    """Pyramid of bi-level routing attention.

    Args:
        depths: Blocks of each stage.
        dims: Channels of each stage.
        topks: Regions that a region of each stage attends to; None where all pixels attend to all.
        num_regions: Rows and columns of regions. It is not in the weights: 7 divides the maps of 224 pixels, the
            authors take 8 for segmentation and 16 for detection.
        head_dim: Channels of a head in the routed stages.
        num_heads: Heads of each stage instead; None for `head_dim` channels each, and 8 heads in global stages.
        lepe_kernel: Side of the local enhancement's convolution.
        mlp_ratio: Hidden width of the MLPs over the channels; or one a stage.
        patch_layout: Whether stem and downsamplers are Swin's patches, with no convolution at the start of blocks.
        pad_projected: How maps that regions do not divide are filled up, see `visionattn.layers.BilevelAttention`;
            the global stages then enhance their values, not their input.
        mixers: Other token mixers, as `Pyramid` takes them; then `mixer_args` are theirs.
        mixer_args: Arguments of other mixers.
        **kwargs: Of `Pyramid`.

    Raises:
        ValueError: If `topks` has not one entry a stage, or `head_dim` does not divide the channels.
    """
    if len(topks) != len(depths):
        raise ValueError(f"topks={tuple(topks)} must have one entry for each of the {len(depths)} stages")
    if num_heads is None and (head_dim < 1 or any(dim % head_dim for dim in dims)):
        raise ValueError(f"head_dim={head_dim} must divide the channels {tuple(dims)}")

    def args(stage: int, block: int) -> dict[str, Any]:
        if topks[stage] is None:
            return {"lepe_kernel": lepe_kernel, "enhance_values": pad_projected}
        return {"num_regions": num_regions, "topk": topks[stage], "lepe_kernel": lepe_kernel,
                "pad_projected": pad_projected}  # fmt: skip

    names = mixers or ["enhanced" if topk is None else "bilevel" for topk in topks]
    usual = [GLOBAL_HEADS if names[i] == "enhanced" else dim // head_dim for i, dim in enumerate(dims)]
    batch = {"norm_layer": "batch"}
    layout: dict[str, Any] = {
        "stem_args": {**batch, "mid_norm": True, "act": "gelu"},
        "downsample_args": {**batch, "bias": True},
        "block_positions": True,
    }
    if patch_layout:
        layout = {
            "stem": "patch",
            "stem_args": {**batch, "drop_ragged": True},
            "downsample": "patch",
            "downsample_args": {**batch, "norm_first": True},
        }
    model = Pyramid(
        depths,
        dims,
        num_heads or usual,
        mixers=names,
        mixer_args=args if mixers is None else mixer_args,
        mlp_ratio=mlp_ratio,
        own_last_norm=True,
        final_norm_layer="batch",
        norm_eps=1e-6,
        **{**layout, **kwargs},
    )
    if pad_projected:
        _init_as_convolutions(model)
    return model


def _init_as_convolutions(model: Pyramid) -> None:
    """The second implementation has 1x1 convolutions where ours has linear layers, and leaves PyTorch's values."""
    for module in model.stages.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()


SHARED = (
    (r"\.pos_embed\.", ".position.conv."),
    (r"\.gamma([12])$", r".scale\1.gamma"),
    (r"\.attn\.router\.emb\.", ".attn.router."),
    (r"\.attn\.(?:qkv\.qkv|qkv_linear)\.", ".attn.qkv."),
    (r"\.attn\.(?:wo|output_linear)\.", ".attn.proj."),
    (r"\.attn\.1\.", ".attn.fc1."),
    (r"\.attn\.2\.", ".attn.conv."),
    (r"\.attn\.3\.", ".attn.fc2."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.1\.dwconv\.", ".mlp.conv."),
    (r"\.mlp\.[23]\.", ".mlp.fc2."),
    (r"(\.(?:attn|mlp)\.(?:qkv|proj|fc1|fc2)\.weight)$", r"\1", pointwise),
    (r"^extra_norms\.", "output_norms."),
    (r"^norm\.", "norm.bn."),
    (r"^head\.", "head.fc."),
)
CONV_LAYOUT = KeyMap(
    "BiFormer",
    (
        (r"^downsample_layers\.0\.0\.", "stem.proj.0."),
        (r"^downsample_layers\.0\.1\.", "stem.mid_norm.bn."),
        (r"^downsample_layers\.0\.3\.", "stem.proj.1."),
        (r"^downsample_layers\.0\.4\.", "stem.norm.bn."),
        (r"^downsample_layers\.(\d)\.0\.", to_stage("down.reduction.")),
        (r"^downsample_layers\.(\d)\.1\.", to_stage("down.norm.bn.")),
        (r"^stages\.(\d)\.(\d+\.)", r"stages.\1.blocks.\2"),
        *SHARED,
    ),
)
PATCH_LAYOUT = KeyMap(
    "BiFormer-STL",
    (
        (r"^downsample_layers\.0\.0\.", "stem.proj."),
        (r"^downsample_layers\.0\.1\.", "stem.norm.bn."),
        (r"^downsample_layers\.(\d)\.0\.", to_stage("down.norm.bn.")),
        (r"^downsample_layers\.(\d)\.1\.", to_stage("down.proj.")),
        *SHARED,
    ),
)

FULL = {-2: "enhanced", -1: "enhanced", 0: "separable"}
POOLS = {"ada_avgpool": "avg", "ada_maxpool": "max", "avgpool": "avg", "maxpool": "max"}


def _from_reference(is_patch: bool, record: Mapping[str, Any]) -> Pyramid | None:
    """Model of a record of one of the layouts; None for one of the other."""
    config, variant = record["config"], record["variant"]
    if ("n_wins" in config) != is_patch:
        return None
    is_dense = record["source"]["entry"] == "BiFormer_mm"
    args: dict[str, Any] = {
        "depths": config["depth"],
        "dims": config["embed_dim"],
        "topks": [topk if topk > 0 else None for topk in config["topks"]],
        "num_regions": config["n_wins"][0] if is_patch else config["n_win"],
        "head_dim": config["head_dim"],
        "lepe_kernel": config["side_dwconv"],
        "mlp_ratio": config["mlp_ratios"],
        "patch_layout": is_patch,
        "pad_projected": "nchw" in source_file(record).name,
        "num_classes": config.get("num_classes", 1000),
        # The rate belongs to the training script.
        "drop_path_rate": VARIANTS.get(f"va_{variant}", {}).get("drop_path_rate", 0.0),
    }
    if not is_patch:
        args |= _options(config)
    if is_dense:
        args |= {"output_norms": True, "final_norm": False, "num_classes": 0}
    return biformer(**args)


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for the options of the reference's first layout, of which the published models use none."""
    names = [FULL.get(topk, "bilevel") for topk in config["topks"]]
    heads = [dim // config["head_dim"] for dim in config["qk_dims"]]
    scale = config["layer_scale_init_value"]
    sizes = config.get("kv_downsample_ratios", ()) if "ada" not in config["kv_downsample_mode"] else ()

    def mixer_args(stage: int, block: int) -> dict[str, Any]:
        if names[stage] == "separable":
            return {}
        if names[stage] == "enhanced":
            return {"lepe_kernel": config["side_dwconv"] if config["topks"][stage] == -2 else 0}
        return bilevel_args(
            {
                **config,
                "topk": config["topks"][stage],
                "qk_dim": config["qk_dims"][stage],
                "kv_per_win": config["kv_per_wins"][stage],
                "kv_downsample_ratio": sizes[stage] if sizes else 1,
            }
        )

    return {
        "num_heads": [GLOBAL_HEADS if name == "enhanced" else n for name, n in zip(names, heads, strict=True)],
        "mixers": names,
        "mixer_args": mixer_args,
        "mlp": "depthwise" if config.get("mlp_dwconv") else "mlp",
        "layer_scale": scale if scale > 0 else None,
        "block_positions": config["before_attn_dwconv"] > 0,
        "norm_sums": not config["pre_norm"],
    }


def bilevel_args(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the mixer for those of the reference's operator."""
    pool = POOLS.get(config["kv_downsample_mode"])
    ratio = config.get("kv_downsample_ratio", 1)
    is_adaptive = config["kv_downsample_mode"].startswith("ada")
    soft = "soft" if config.get("soft_routing") else "hard"
    return {
        "num_regions": config["n_win"],
        "topk": config["topk"],
        "lepe_kernel": config["side_dwconv"],
        "qk_scale": config.get("qk_scale"),
        "qk_dim": config.get("qk_dim"),
        "routing": "learned" if config.get("param_routing") else soft,
        "kv_pool": pool if is_adaptive or ratio > 1 else None,
        "kv_pool_size": config.get("kv_per_win", 1) if is_adaptive else -ratio,
        "proj": config.get("param_attention", "qkvo") == "qkvo",
    }


SMALL_DEPTHS = (4, 4, 18, 4)
STL: dict[str, Any] = {"depths": (2, 2, 6, 2), "dims": (96, 192, 384, 768), "mlp_ratio": 4.0, "drop_path_rate": 0.1,
                       "patch_layout": True}  # fmt: skip
CONV_VARIANTS: dict[str, dict[str, Any]] = {
    "va_biformer_tiny": {"depths": (2, 2, 8, 2), "dims": (64, 128, 256, 512), "drop_path_rate": 0.1},
    "va_biformer_small": {"depths": SMALL_DEPTHS, "dims": (64, 128, 256, 512), "drop_path_rate": 0.15},
    "va_biformer_base": {"depths": SMALL_DEPTHS, "dims": (96, 192, 384, 768), "drop_path_rate": 0.4},
}
PATCH_VARIANTS: dict[str, dict[str, Any]] = {
    "va_biformer_stl": STL,
    "va_biformer_stl_nchw": {**STL, "pad_projected": True},
}
VARIANTS = {**CONV_VARIANTS, **PATCH_VARIANTS}


def _row(reference: str, share: str, *figures: float | None) -> Published:
    url = f"https://api.onedrive.com/v1.0/shares/s!AkBbczdRlZvCh{share}/root/content"
    return Published(reference, url, *figures, is_page=True)


CONV_WEIGHTS = {
    "va_biformer_tiny.in1k": _row("biformer_tiny", "HEOoGkgwgQzEDlM", 81.4, None, 13.1, 2.2),
    "va_biformer_small.in1k": _row("biformer_small", "HDyM-x9KWRBZ832", 83.8, None, 25.5, 4.5),
    "va_biformer_base.in1k": _row("biformer_base", "HI_XPhoadjaNxtO", 84.3, None, 56.8, 9.8),
}
PATCH_WEIGHTS = {
    "va_biformer_stl.in1k": _row("biformer_stl", "Sf-m7ujkvx9lIQ1", 82.7, None, 28.4, 4.6),
    "va_biformer_stl_nchw.in1k": _row("biformer_stl_nchw", "WYrKbWbMgqd2Ai0", 82.7, None, 28.4, 4.6),
}

MICRO = {"depths": (1, 1, 1, 1), "dims": (16, 16, 24, 32), "head_dim": 8, "num_regions": 2, "topks": (1, 2, 3, None),
         "lepe_kernel": 3}  # fmt: skip
DENSE_ARGS = {"*": {"output_norms": True}}
BIFORMER = Family(
    "biformer", "BiFormer", (PAPER,), "mit", ORIGIN, biformer, (CONV_LAYOUT,), "biformer",
    partial(_from_reference, False), "stem.proj.0", {"va_biformer_tiny": MICRO}, dense_args=DENSE_ARGS,
)  # fmt: skip
BIFORMER_STL = Family(
    "biformer_stl", "BiFormer-STL", (PAPER,), "mit", ORIGIN, biformer, (PATCH_LAYOUT,), "biformer",
    partial(_from_reference, True), micros={"va_biformer_stl_nchw": MICRO}, dense_args=DENSE_ARGS,
)  # fmt: skip
AGAIN = "trained a second time by the authors"
DENSE = {
    "va_biformer_small.in1k": (
        Dense("Mask R-CNN 1x", 47.8, 43.2),
        Dense("Mask R-CNN 1x", 48.1, 43.6, note=AGAIN),
        Dense("RetinaNet 1x", 45.9),
        Dense("RetinaNet 1x", 47.3, note=AGAIN),
        Dense("Semantic FPN 80k", miou=48.9),
        Dense("UPerNet 160k", miou=49.8, miou_multi=50.8),
    ),
    "va_biformer_base.in1k": (
        Dense("Mask R-CNN 1x", 48.6, 43.7),
        Dense("RetinaNet 1x", 47.1),
        Dense("Semantic FPN 80k", miou=49.9),
        Dense("UPerNet 160k", miou=51.0, miou_multi=51.7),
    ),
}
register(__name__, BIFORMER, CONV_VARIANTS, CONV_WEIGHTS, DENSE)
register(__name__, BIFORMER_STL, PATCH_VARIANTS, PATCH_WEIGHTS)
