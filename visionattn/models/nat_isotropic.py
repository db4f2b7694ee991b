# SPDX-License-Identifier: Apache-2.0
"""Isotropic NAT and DiNAT, and ViT with relative position bias: the DiNAT paper's comparison on a ViT skeleton.

Paper: Dilated Neighborhood Attention Transformer, arXiv 2209.15001. Weights: MIT.
"""

from collections.abc import Mapping
from typing import Any

from timm.layers import to_2tuple

from ._checkpoint import KeyMap
from ._isotropic import Isotropic
from ._reference import source_file, translate
from ._registry import Family, Published, register
from .nat import CHECKPOINTS, DINAT_PAPER, ORIGIN


def nat_isotropic(
    embed_dim: int = 384,
    depth: int = 12,
    num_heads: int = 12,
    kernel_size: int | None = 7,
    dilation: int = 1,
    img_size: int | tuple[int, int] = 224,
    patch_size: int = 16,
    qkv_bias: bool = True,
    qk_scale: float | None = None,
    **kwargs: Any,
) -> Isotropic:
    """ViT of neighborhood attention.

    Args:
        embed_dim: Channels.
        depth: Blocks.
        num_heads: Heads.
        kernel_size: Keys per axis; None for global attention with relative position bias.
        dilation: Dilation of every second block.
        img_size: Side or `(height, width)` of the images that global attention's bias tables are made for; other
            images are taken too, by resizing the tables.
        patch_size: Side of a patch.
        qkv_bias: Whether qkv projections have a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        **kwargs: Of `Isotropic`.
    """
    height, width = (-(-side // patch_size) for side in to_2tuple(img_size))

    def mixer_args(block: int) -> dict[str, Any]:
        shared = {"qkv_bias": qkv_bias, "qk_scale": qk_scale}
        if kernel_size is None:
            return {"map_size": (height, width), **shared}
        return {"kernel_size": kernel_size, "dilation": dilation if block % 2 else 1, **shared}

    mixer = "global" if kernel_size is None else "neighborhood"
    return Isotropic(depth, embed_dim, num_heads, patch_size, mixer=mixer, mixer_args=mixer_args, **kwargs)


KEYS = KeyMap(
    "SHI-Labs isotropic",
    ((r"^patch_embed\.", "stem."), (r"^layers\.", "blocks."), (r"^head\.", "head.fc.")),
    constants=(r"\.relative_position_index$",),
)


def _from_reference(record: Mapping[str, Any]) -> Isotropic | None:
    if source_file(record).name != "isotropic.py":
        return None
    config = dict(record["config"])
    is_global = config.pop("layer", "NATransformerLayer") == "VisionTransformerLayer"
    args = translate(config, {"depth": "depth", "kernel_size": "kernel_size", "dilation": "dilation",
                              "img_size": "img_size"})  # fmt: skip
    args["kernel_size"] = None if is_global else args.get("kernel_size", 7)
    args["dilation"] = args.get("dilation") or 1
    return nat_isotropic(**args)


SMALL = {"embed_dim": 384, "num_heads": 12, "drop_path_rate": 0.1}
BASE = {"embed_dim": 768, "num_heads": 24, "drop_path_rate": 0.4}
VARIANTS: dict[str, dict[str, Any]] = {
    "va_nat_isotropic_small": SMALL,
    "va_nat_isotropic_base": BASE,
    "va_dinat_isotropic_small": {**SMALL, "dilation": 2},
    "va_dinat_isotropic_base": {**BASE, "dilation": 2},
    "va_vitrpb_small": {**SMALL, "kernel_size": None},
    "va_vitrpb_base": {**BASE, "kernel_size": None},
}
FIGURES = {  # top-1, millions of parameters, billions of multiply-accumulates
    "nat_isotropic_small": (80.0, 22, 4.3),
    "nat_isotropic_base": (81.6, 86, 16.9),
    "dinat_isotropic_small": (80.8, 22, 4.3),
    "dinat_isotropic_base": (82.1, 86, 16.9),
    "vitrpb_small": (81.2, 22, 4.6),
    "vitrpb_base": (82.5, 86, 17.5),
}
WEIGHTS = {
    f"va_{name}.in1k": Published(
        name, f"{CHECKPOINTS}/dinat/checkpoints/isotropic/{name}_in1k_224.pth", top1, None, params, gflops
    )
    for name, (top1, params, gflops) in FIGURES.items()
}

MICRO = {"embed_dim": 24, "depth": 3, "num_heads": 3, "patch_size": 8, "img_size": 64}
ISOTROPIC = Family(
    "nat_isotropic", "Isotropic NAT, DiNAT and ViT-rpb", (DINAT_PAPER,), "mit", ORIGIN, nat_isotropic, (KEYS,),
    "dinat", _from_reference,
    micros={"va_dinat_isotropic_small": {**MICRO, "kernel_size": 3}, "va_vitrpb_small": MICRO},
)  # fmt: skip
register(__name__, ISOTROPIC, VARIANTS, WEIGHTS)
