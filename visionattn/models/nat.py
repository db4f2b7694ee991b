# SPDX-License-Identifier: Apache-2.0
"""NAT and DiNAT: pyramids of (dilated) neighborhood attention.

Every pixel attends to the 7x7 pixels nearest to it; at the border the window is shifted inwards, so each query sees
49 keys. DiNAT dilates every second layer until its keys span the map.

Papers: Neighborhood Attention Transformer, arXiv 2204.07143; Dilated Neighborhood Attention Transformer,
arXiv 2209.15001. Weights: MIT.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ._checkpoint import KeyMap
from ._pyramid import Pyramid
from ._reference import dense_args, dilation_lists, freeze, source_file, translate
from ._registry import Dense, Family, Paper, Published, register

NAT_PAPER = Paper("Neighborhood Attention Transformer", "2204.07143")
DINAT_PAPER = Paper("Dilated Neighborhood Attention Transformer", "2209.15001")
ORIGIN = "https://github.com/SHI-Labs/Neighborhood-Attention-Transformer"
CHECKPOINTS = "https://shi-labs.com/projects"


def nat(
    embed_dim: int = 64,
    depths: Sequence[int] = (3, 4, 18, 5),
    num_heads: Sequence[int] = (2, 4, 8, 16),
    kernel_size: int = 7,
    dilations: Sequence[Sequence[int]] | None = None,
    qkv_bias: bool = True,
    qk_scale: float | None = None,
    stem: str = "conv",
    downsample: str = "conv",
    **kwargs: Any,
) -> Pyramid:
    """Pyramid of neighborhood attention.

    Args:
        embed_dim: Channels of the first stage; each next has twice as many.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        kernel_size: Keys per axis.
        dilations: Dilation of every block of every stage; None for 1.
        qkv_bias: Whether qkv projections have a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        stem: "conv", overlapping convolutions, or "patch".
        downsample: "conv", overlapping convolutions, or "merge".
        **kwargs: Of `Pyramid`.

    Raises:
        ValueError: If `dilations` does not give every block one.
    """
    if dilations is not None and [len(d) for d in dilations] != list(depths):
        raise ValueError(f"dilations={dilations} must give every block one; the stages have {tuple(depths)} blocks")

    def mixer_args(stage: int, block: int) -> dict[str, Any]:
        dilation = 1 if dilations is None else dilations[stage][block]
        return {"kernel_size": kernel_size, "dilation": dilation, "qkv_bias": qkv_bias, "qk_scale": qk_scale}

    dims = [embed_dim * 2**i for i in range(len(depths))]
    return Pyramid(depths, dims, num_heads, stem=stem, downsample=downsample, mixer_args=mixer_args, **kwargs)


KEYS = KeyMap(
    "SHI-Labs",
    (
        (r"^patch_embed\.", "stem."),
        (r"^levels\.|^layers\.", "stages."),
        (r"\.downsample\.", ".down."),
        (r"\.gamma([12])$", r".scale\1.gamma"),
        (r"^norm(\d+)\.", r"output_norms.\1."),
        (r"^head\.", "head.fc."),
    ),
)


PATCH_ARGS = {"patch_size": "patch_size", "patch_norm": "norm"}  # of DiNAT_s


def from_reference(record: Mapping[str, Any], **args: Any) -> Pyramid:
    """Model of a golden record of NAT, DiNAT or DiNAT_s; `args` are ours."""
    config = record["config"]
    args |= translate(config, {"depths": "depths", "kernel_size": "kernel_size", "layer_scale": "layer_scale",
                               "dilations": "dilations"})  # fmt: skip
    args["dilations"] = dilation_lists(config)
    stem_args = {ours: args.pop(theirs) for theirs, ours in PATCH_ARGS.items() if theirs in args}
    if stem_args:
        args["stem_args"] = stem_args
    if source_file(record).parts[0] != "classification":
        args |= dense_args(config, len(config["depths"]))
    model = nat(**args)
    freeze(model, config)
    return model


def _from_nat_or_dinat(record: Mapping[str, Any]) -> Pyramid | None:
    return from_reference(record) if source_file(record).name in ("nat.py", "dinat.py") else None


def alternating(depths: Sequence[int], last: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Dilations of every block: 1 and the stage's own in turn."""
    return tuple(tuple(1 if j % 2 == 0 else d for j in range(n)) for n, d in zip(depths, last, strict=True))


SMALL = {"depths": (3, 4, 6, 5), "embed_dim": 64, "num_heads": (2, 4, 8, 16), "mlp_ratio": 3.0, "drop_path_rate": 0.2}
SIZES: dict[str, dict[str, Any]] = {
    "mini": SMALL,
    "tiny": {**SMALL, "depths": (3, 4, 18, 5)},
    "small": {"embed_dim": 96, "num_heads": (3, 6, 12, 24), "mlp_ratio": 2.0, "drop_path_rate": 0.3},
    "base": {"embed_dim": 128, "num_heads": (4, 8, 16, 32), "mlp_ratio": 2.0, "drop_path_rate": 0.5,
             "layer_scale": 1e-5},
    "large": {"embed_dim": 192, "num_heads": (6, 12, 24, 48), "mlp_ratio": 2.0, "drop_path_rate": 0.35},
}  # fmt: skip


def _dilated(size: str, last: Sequence[int] = (8, 4, 2, 1), **args: Any) -> dict[str, Any]:
    depths = SIZES[size].get("depths", (3, 4, 18, 5))
    return {**SIZES[size], "depths": depths, "dilations": alternating(depths, last), **args}


def _nat(size: str, **args: Any) -> dict[str, Any]:
    return {"depths": (3, 4, 18, 5), **SIZES[size], **args}


NAT_VARIANTS = {
    "va_nat_mini": _nat("mini"),
    "va_nat_tiny": _nat("tiny"),
    "va_nat_small": _nat("small", layer_scale=1e-5),
    "va_nat_base": _nat("base"),
}
DINAT_VARIANTS = {
    "va_dinat_mini": _dilated("mini"),
    "va_dinat_tiny": _dilated("tiny"),
    "va_dinat_small": _dilated("small"),
    "va_dinat_base": _dilated("base"),
    "va_dinat_large": _dilated("large"),
    "va_dinat_large_384": _dilated("large", (13, 6, 3, 1)),
    "va_dinat_large_384_11x11": _dilated("large", kernel_size=11),
}
HEAD_22K = "The head of the ImageNet-22K files has their classes: give the number as `num_classes` in the overlay"


def figures(
    reference: str, file: str, top1: float | None, params: float, gflops: float | None, **more: Any
) -> Published:
    """Published weights of SHI-Labs, whose files share a root."""
    return Published(reference, f"{CHECKPOINTS}/{file}", top1, None, params, gflops, **more)


NAT_WEIGHTS = {
    "va_nat_mini.in1k": figures("nat_mini", "nat/checkpoints/CLS/nat_mini.pth", 81.8, 20, 2.7),
    "va_nat_tiny.in1k": figures("nat_tiny", "nat/checkpoints/CLS/nat_tiny.pth", 83.2, 28, 4.3),
    "va_nat_small.in1k": figures("nat_small", "nat/checkpoints/CLS/nat_small.pth", 83.7, 51, 7.8),
    "va_nat_base.in1k": figures("nat_base", "nat/checkpoints/CLS/nat_base.pth", 84.3, 90, 13.7),
}
ONE_K, FULL = "dinat/checkpoints/imagenet1k", "dinat/checkpoints/imagenet22k"
AT_384: dict[str, Any] = {"size": 384, "crop_pct": 1.0}
PRE: dict[str, Any] = {"args": {"drop_path_rate": 0.2}, "note": HEAD_22K}
DINAT_WEIGHTS = {
    "va_dinat_mini.in1k": figures("dinat_mini", f"{ONE_K}/dinat_mini_in1k_224.pth", 81.8, 20, 2.7),
    "va_dinat_tiny.in1k": figures("dinat_tiny", f"{ONE_K}/dinat_tiny_in1k_224.pth", 82.7, 28, 4.3),
    "va_dinat_small.in1k": figures("dinat_small", f"{ONE_K}/dinat_small_in1k_224.pth", 83.8, 51, 7.8),
    "va_dinat_base.in1k": figures("dinat_base", f"{ONE_K}/dinat_base_in1k_224.pth", 84.4, 90, 13.7),
    "va_dinat_large.in22k_ft_in1k": figures(
        "dinat_large", f"{ONE_K}/dinat_large_in22k_in1k_224.pth", 86.6, 200, 30.6),
    "va_dinat_large.in22k": figures("dinat_large_21k", f"{FULL}/dinat_large_in22k_224.pth", None, 200, 30.6, **PRE),
    "va_dinat_large_384.in22k_ft_in1k": figures(
        "dinat_large_384", f"{ONE_K}/dinat_large_in22k_in1k_384.pth", 87.4, 200, 89.7, **AT_384),
    "va_dinat_large_384_11x11.in22k_ft_in1k": figures(
        "dinat_large_384_11x11", f"{ONE_K}/dinat_large_in22k_in1k_384_11x11.pth", 87.5, 200, 92.4, **AT_384),
    "va_dinat_large_384_11x11.in22k": figures(
        "dinat_large_21k_11x11", f"{FULL}/dinat_large_in22k_224_11x11interp.pth", None, 200, None, **PRE),
}  # fmt: skip

MICRO = {"embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 4), "kernel_size": 3, "layer_scale": 0.1}
MICRO_DILATED = {**MICRO, "dilations": ((1,), (1, 2), (1,), (2,))}
DENSE_ARGS = {"*": {"output_norms": True}}
NAT = Family(
    "nat", "NAT", (NAT_PAPER,), "mit", ORIGIN, nat, (KEYS,), "nat", _from_nat_or_dinat, "stem.proj.0",
    {"va_nat_tiny": MICRO}, dense_args=DENSE_ARGS,
)  # fmt: skip
DINAT = Family(
    "dinat", "DiNAT", (DINAT_PAPER,), "mit", ORIGIN, nat, (KEYS,), "dinat", _from_nat_or_dinat, "stem.proj.0",
    {"va_dinat_tiny": MICRO_DILATED}, dense_args=DENSE_ARGS,
)  # fmt: skip


def results(
    mask_rcnn: tuple[float, float] | None,
    cascade: tuple[float, float],
    upernet: tuple[float, float],
    note: str | None = None,
) -> tuple[Dense, ...]:
    """SHI-Labs' results of one backbone: box and mask AP of the detectors, mIoU at one and at several scales."""
    detectors = {"Mask R-CNN 3x": mask_rcnn, "Cascade Mask R-CNN 3x": cascade}
    rows = [Dense(method, *pair) for method, pair in detectors.items() if pair is not None]
    return (*rows, Dense("UPerNet 160k", None, None, *upernet, note=note))


CROPS_640 = "crops of 640 pixels"
NAT_DENSE = {
    "va_nat_mini.in1k": results((46.5, 41.7), (50.3, 43.6), (45.1, 46.4)),
    "va_nat_tiny.in1k": results((47.7, 42.6), (51.4, 44.5), (47.1, 48.4)),
    "va_nat_small.in1k": results((48.4, 43.2), (52.0, 44.9), (48.0, 49.5)),
    "va_nat_base.in1k": results(None, (52.3, 45.1), (48.5, 49.7)),
}
DINAT_DENSE = {
    "va_dinat_mini.in1k": results((47.2, 42.5), (51.2, 44.4), (45.8, 47.2)),
    "va_dinat_tiny.in1k": results((48.6, 43.5), (52.2, 45.1), (47.8, 48.8)),
    "va_dinat_small.in1k": results((49.3, 44.0), (52.9, 45.8), (48.9, 49.9)),
    "va_dinat_base.in1k": results(None, (53.4, 46.2), (49.6, 50.4)),
    "va_dinat_large.in22k": results(None, (55.3, 47.8), (54.0, 54.9), CROPS_640),
    "va_dinat_large_384_11x11.in22k": (
        Dense("Mask2Former, instances", mask_ap=50.8),
        Dense("Mask2Former, semantic", miou_multi=58.1),
        Dense("Mask2Former, panoptic", mask_ap=49.2, note="PQ 58.5 on COCO"),
        Dense("Mask2Former, panoptic", miou=56.3, note="PQ 49.4 on ADE20K"),
    ),
}
register(__name__, NAT, NAT_VARIANTS, NAT_WEIGHTS, NAT_DENSE)
register(__name__, DINAT, DINAT_VARIANTS, DINAT_WEIGHTS, DINAT_DENSE)
