# SPDX-License-Identifier: Apache-2.0
"""DAT and DAT++: pyramids whose pixels attend to points that a network moves to where the image is interesting.

DAT pairs it with shifted windows, DAT++ with neighborhood attention. The two place points and queries differently, so
that weights of one mean nothing to the other, though shapes agree.

Papers: Vision Transformer with Deformable Attention, arXiv 2201.00520; DAT++, arXiv 2309.01430. Weights: Apache-2.0.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from visionattn.layers import STEMS, Block, DeformableAttention, WindowAttention, init_table, pick

from ._dat_reference import CONVS, OVERLAPS, PATCHES, key_map, reference_args
from ._pyramid import Pyramid
from ._registry import Dense, Family, Paper, Published, register

PAPER = Paper("Vision Transformer with Deformable Attention", "2201.00520")
PAPER_PP = Paper("DAT++: Spatially Dynamic Vision Transformer with Deformable Attention", "2309.01430")
ORIGIN = "https://github.com/LeapLabTHU/DAT"
# The authors' letters of blocks. X is a block without attention; a mixer stands in for it while the host is built.
KINDS = {"L": "window", "S": "window", "D": "deformable", "N": "neighborhood", "P": "spatial_reduction", "E": "slide",
         "X": "separable"}  # fmt: skip
PerStage = Any  # a value for all stages, or a sequence of one for each


def deformable_pyramid(
    generation: str,
    depths: Sequence[int],
    dims: Sequence[int],
    num_heads: Sequence[int],
    stage_spec: Sequence[str],
    num_groups: PerStage,
    strides: PerStage,
    offset_kernels: PerStage,
    offset_range: PerStage,
    window_size: PerStage = 7,
    neighborhood_size: PerStage = 7,
    reductions: PerStage = 1,
    position: PerStage = "table",
    sample: PerStage = "points",
    img_size: int = 224,
    patch_size: int = 4,
    conv_patches: bool = False,
    stem_dim: int | None = None,
    **kwargs: Any,
) -> Pyramid:
    """Pyramid of blocks that look at points, windows or neighborhoods.

    Args:
        generation: "DAT" or "DAT++", which differ in where points and queries lie, and how points stay inside.
        depths: Blocks of each stage.
        dims: Channels of each stage.
        num_heads: Heads of each stage.
        stage_spec: Kinds of the blocks of each stage, repeated as often as it takes: D deformable attention, L windows,
            S shifted windows, N neighborhood attention, P attention to patches, E slide attention, X a convolution.
        num_groups: Groups of channels with points of their own; this and the next, for all stages or each.
        strides: Pixels from one point to the next before they are moved.
        offset_kernels: Side of the convolution that moves them.
        offset_range: Cells that a point is moved by at most; None for as far as the border, `math.inf` for no limit.
        window_size: Side of windows, and of the convolution of X.
        neighborhood_size: Side of neighborhoods.
        reductions: Side of the patches of P.
        position: Position bias of D, see `visionattn.layers.DeformableAttention`.
        sample: What D samples, see there.
        img_size: Side of the images that tables are made for; images of other sizes are taken too.
        patch_size: Side of a patch.
        conv_patches: Whether stem and downsamplers are overlapping convolutions instead of patches.
        stem_dim: Channels of the stem, projected to `dims[0]`; None for these.
        **kwargs: Of `Pyramid`.

    Raises:
        ValueError: If a letter of `stage_spec` is unknown, or sizes do not fit together.
    """
    if len(stage_spec) != len(depths) or not all(stage_spec) or set("".join(stage_spec)) - set(KINDS):
        letters = "".join(KINDS)
        raise ValueError(f"stage_spec={stage_spec} must have letters of {letters} for each of {len(depths)} stages")
    if conv_patches and patch_size != 4:
        raise ValueError(f"patch_size={patch_size} must be 4 where conv_patches is true")
    kinds = [(spec * depth)[:depth] for spec, depth in zip(stage_spec, depths, strict=True)]
    is_first = generation == "DAT"

    def mixer_args(stage: int, block: int) -> dict[str, Any]:
        kind = kinds[stage][block]
        window, limit, kernel, stride = (_at(v, stage) for v in (window_size, offset_range, offset_kernels, strides))
        if kind in "LS":
            # Half a window, rounded up: Swin rounds down.
            return {"window_size": window, "shift": (window + 1) // 2 if kind == "S" else 0, "shift_small_maps": True}
        if kind != "D":
            more = {"N": ("kernel_size", neighborhood_size), "P": ("reduction", reductions)}.get(kind)
            return {} if more is None else {more[0]: _at(more[1], stage)}
        return {
            "num_groups": _at(num_groups, stage),
            "stride": stride,
            "kernel_size": kernel,
            "pad_offsets": is_first or kernel != stride,
            "grid": "centers" if is_first else "corners",
            "offset_range": None if limit is None or math.isinf(limit) else limit,
            "bound": None if limit is not None else "tanh" if is_first else "clamp",
            "position": _at(position, stage),
            "map_size": img_size // patch_size // 2**stage,
            "sample": _at(sample, stage),
        }

    layout = _patches(is_first, conv_patches, patch_size)
    model = Pyramid(
        depths, dims, num_heads, mixers=[[KINDS[kind] for kind in row] for row in kinds], mixer_args=mixer_args,
        **{**layout, **kwargs},
    )  # fmt: skip
    for stage, row in enumerate(kinds):
        for i, kind in enumerate(row):
            if kind == "X":
                blocks: Any = model.stages[stage].blocks
                blocks[i] = ConvolutionBlock(blocks[i], dims[stage], _at(window_size, stage))
    if stem_dim is not None and stem_dim != dims[0]:
        stem = pick("stem", layout["stem"], STEMS)
        model.stem = stem(model.in_chans, stem_dim, **layout["stem_args"])
        model.pos_embed = nn.Linear(stem_dim, dims[0])  # what comes between stem and stages
    _init_as_reference(model)
    return model


def _at(value: PerStage, stage: int) -> Any:
    return value[stage] if isinstance(value, Sequence) and not isinstance(value, str) else value


def _patches(is_first: bool, conv_patches: bool, patch_size: int) -> dict[str, Any]:
    """Stem and downsamplers."""
    if not conv_patches:
        return {"stem": "patch", "stem_args": {"patch_size": patch_size, "drop_ragged": True}, "downsample": "patch",
                "downsample_args": {"bias": False}}  # fmt: skip
    if is_first:
        return {"stem": "overlap", "stem_args": {}, "downsample": "conv"}
    return {"stem": "conv", "stem_args": {"mid_norm": True, "act": "gelu"}, "downsample": "conv"}


class ConvolutionBlock(nn.Module):
    """`x + mlp(norm(conv(x)))` with a depth-wise convolution, made of the other parts of a block.

    The factors of its branches are idle; the published code has them, and so have its files.
    """

    def __init__(self, block: Block, dim: int, kernel_size: int) -> None:
        super().__init__()
        assert block.mlp is not None
        self.position, self.mlp, self.drop_path = block.position, block.mlp, block.drop_path
        self.scale1, self.scale2 = block.scale1, block.scale2
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, H, W, C)` to the same shape."""
        x = self.position(x)
        return x + self.drop_path(self.mlp(self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))))


def _init_as_reference(model: Pyramid) -> None:
    """The authors leave PyTorch's initial values everywhere but in tables."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
        if isinstance(module, (DeformableAttention, WindowAttention)) and module.rpb is not None:
            init_table(module.rpb, 0.01)


def dat(
    depths: Sequence[int] = (2, 2, 6, 2),
    dims: Sequence[int] = (96, 192, 384, 768),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    stage_spec: Sequence[str] = ("LS", "LS", "LD", "LD"),
    num_groups: PerStage = (1, 1, 3, 6),
    strides: PerStage = 1,
    offset_kernels: PerStage = (9, 7, 5, 3),
    offset_range: PerStage = 2,
    **kwargs: Any,
) -> Pyramid:
    """DAT, the first generation; arguments of `deformable_pyramid`."""
    points = (num_groups, strides, offset_kernels, offset_range)
    return deformable_pyramid("DAT", depths, dims, num_heads, stage_spec, *points, **kwargs)


def datpp(
    depths: Sequence[int] = (2, 4, 18, 2),
    dims: Sequence[int] = (64, 128, 256, 512),
    num_heads: Sequence[int] = (2, 4, 8, 16),
    stage_spec: Sequence[str] = ("ND", "ND", "ND", "DD"),
    num_groups: PerStage = (1, 2, 4, 8),
    strides: PerStage = (8, 4, 2, 1),
    offset_kernels: PerStage = (9, 7, 5, 3),
    offset_range: PerStage = None,
    conv_patches: bool = True,
    mlp: PerStage = "depthwise_residual",
    block_positions: PerStage = True,
    **kwargs: Any,
) -> Pyramid:
    """DAT++; arguments of `deformable_pyramid` and of `Pyramid`."""
    points = (num_groups, strides, offset_kernels, offset_range)
    layout: dict[str, Any] = {"conv_patches": conv_patches, "mlp": mlp, "block_positions": block_positions}
    return deformable_pyramid("DAT++", depths, dims, num_heads, stage_spec, *points, **layout, **kwargs)


def _from_reference(title: str, record: Mapping[str, Any]) -> Pyramid | None:
    """Model of a record of the family of this title; None for one of another."""
    args = reference_args(title, record)
    return None if args is None else (dat if title == "DAT" else datpp)(**args)


BASE: dict[str, Any] = {"dims": (128, 256, 512, 1024), "num_heads": (4, 8, 16, 32)}
SMALL: dict[str, Any] = {"dims": (96, 192, 384, 768), "num_heads": (3, 6, 12, 24)}
DEEP = (2, 2, 18, 2)
V1 = {
    "va_dat_tiny": {**SMALL, "depths": (2, 2, 6, 2), "drop_path_rate": 0.2},
    "va_dat_small": {**SMALL, "depths": DEEP, "drop_path_rate": 0.3},
    "va_dat_base": {**BASE, "depths": DEEP, "num_groups": (1, 1, 4, 8), "drop_path_rate": 0.5},
    "va_dat_base_384": {**BASE, "depths": DEEP, "num_groups": (1, 1, 4, 8), "window_size": 12, "img_size": 384,
                        "drop_path_rate": 0.5},
}  # fmt: skip
DEEP_PP = (2, 4, 18, 2)
BASE_PP: dict[str, Any] = {**BASE, "depths": DEEP_PP, "num_groups": (2, 4, 8, 16)}
PP = {
    "va_datpp_tiny": {"depths": DEEP_PP, "drop_path_rate": 0.2},
    "va_datpp_small": {**SMALL, "depths": DEEP_PP, "num_groups": (1, 2, 3, 6), "drop_path_rate": 0.4},
    "va_datpp_base": {**BASE_PP, "drop_path_rate": 0.7},
    "va_datpp_base_384": {**BASE_PP, "drop_path_rate": 0.6},
}
# DAT+, the step between the two: DAT++ in the layout of DAT.
PATCH_LAYOUT: dict[str, Any] = {"conv_patches": False, "mlp": "mlp", "block_positions": False}
PLAIN = {"va_datp_tiny": {"depths": DEEP_PP, "drop_path_rate": 0.2, **PATCH_LAYOUT}}
DRIVE = "https://drive.google.com/file/d/{}/view?usp=sharing"
CLOUD = "https://cloud.tsinghua.edu.cn/f/{}/"


def _row(reference: str, page: str, *figures: Any, **more: Any) -> Published:
    return Published(reference, page, *figures, is_page=True, **more)


V1_WEIGHTS = {
    "va_dat_tiny.in1k": _row("dat_tiny", DRIVE.format("1I08oJlXNtDe8jJPxHkroxUi7lYX2lhVc"), 82.0, 95.85, 29, 4.6),
    "va_dat_small.in1k": _row("dat_small", DRIVE.format("1UUmQqQYY5OInVuXvUgO41Gice93vJ0A7"), 83.7, 96.392, 50, 9.0),
    "va_dat_base.in1k": _row("dat_base", DRIVE.format("1Avu16r59koxizoSYhfaCdNdr-QxLVGjd"), 84.0, 96.686, 88, 15.8),
    "va_dat_base_384.in1k": _row(
        "dat_base_384", DRIVE.format("1m8E2U4iQ6EOe1e8SuAGPbPlPhISXnVWq"), 84.8, 96.982, 88, 49.8, size=384,
        crop_pct=384 / 438),
}  # fmt: skip
PP_WEIGHTS = {
    "va_datpp_tiny.in1k": _row("dat_plus_plus_tiny", CLOUD.format("14c5ddae10b642e68089"), 83.9, 96.734, 24, 4.3),
    "va_datpp_small.in1k": _row("dat_plus_plus_small", CLOUD.format("4c2a76360c964fbd81d5"), 84.6, None, 53, 9.4),
    "va_datpp_base.in1k": _row("dat_plus_plus_base", CLOUD.format("8e30492404d348d89f25"), 84.9, None, 94, 16.6),
    "va_datpp_base_384.in1k": _row(
        "dat_plus_plus_base_384", CLOUD.format("032dc804cdf44bf18bb5"), 85.9, None, 94, 49.7, size=384, crop_pct=1.0),
}  # fmt: skip
PP_DENSE = {
    "va_datpp_tiny.in1k": (
        Dense("RetinaNet 1x", 46.8), Dense("RetinaNet 3x", 49.2), Dense("Mask R-CNN 1x", 48.7, 43.7),
        Dense("Mask R-CNN 3x", 50.5, 45.1), Dense("Cascade Mask R-CNN 1x", 52.2, 45.0),
        Dense("Cascade Mask R-CNN 3x", 53.0, 46.0), Dense("Semantic FPN 40k", miou=48.4, miou_multi=48.8),
        Dense("UPerNet 160k", miou=49.4, miou_multi=50.3)),
    "va_datpp_small.in1k": (
        Dense("RetinaNet 1x", 48.3), Dense("RetinaNet 3x", 50.2), Dense("Mask R-CNN 1x", 49.8, 44.5),
        Dense("Mask R-CNN 3x", 51.2, 45.7), Dense("Cascade Mask R-CNN 3x", 54.2, 46.9),
        Dense("Semantic FPN 40k", miou=49.9, miou_multi=50.7), Dense("UPerNet 160k", miou=50.5, miou_multi=51.2)),
    "va_datpp_base.in1k": (
        Dense("Cascade Mask R-CNN 3x", 54.5, 47.0), Dense("Semantic FPN 40k", miou=50.4, miou_multi=51.1),
        Dense("UPerNet 160k", miou=51.0, miou_multi=51.5)),
}  # fmt: skip
PLAIN_WEIGHTS = {"va_datp_tiny.untrained": Published("dat_plus_tiny", "")}

MICRO = {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 32), "num_heads": (1, 2, 2, 4), "num_groups": (1, 2, 2, 2),
         "stage_spec": ("S", "D", "D", "D"), "offset_kernels": (5, 5, 3, 3), "window_size": 4,
         "img_size": 64}  # fmt: skip
MICRO_PP = {**MICRO, "stage_spec": ("N", "D", "D", "D"), "strides": (4, 2, 1, 1), "neighborhood_size": 3}
DENSE_ARGS = {"*": {"output_norms": True}}
DAT = Family(
    "dat", "DAT", (PAPER,), "apache-2.0", ORIGIN, dat, (key_map("DAT", PATCHES), key_map("DAT", OVERLAPS)), "dat",
    partial(_from_reference, "DAT"), micros={"va_dat_tiny": MICRO}, dense_args=DENSE_ARGS, squash=True,
)  # fmt: skip
DATPP = Family(
    "datpp", "DAT++", (PAPER_PP, PAPER), "apache-2.0", ORIGIN, datpp,
    (key_map("DAT++", CONVS),), "dat", partial(_from_reference, "DAT++"), "stem.proj.0", {"va_datpp_tiny": MICRO_PP},
    dense_args=DENSE_ARGS, squash=True,
)  # fmt: skip
DATP = Family(
    "datp", "DAT+", (PAPER_PP, PAPER), "apache-2.0", ORIGIN, datpp,
    (key_map("DAT+", PATCHES),), "dat", partial(_from_reference, "DAT+"),
    micros={"va_datp_tiny": MICRO_PP}, dense_args=DENSE_ARGS, squash=True,
)  # fmt: skip
register(__name__, DAT, V1, V1_WEIGHTS)
register(__name__, DATPP, PP, PP_WEIGHTS, PP_DENSE)
register(__name__, DATP, PLAIN, PLAIN_WEIGHTS)
