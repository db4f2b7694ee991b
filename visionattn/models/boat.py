# SPDX-License-Identifier: Apache-2.0
"""BOAT: Swin and CSWin, some of whose blocks also attend among pixels with like queries, wherever they are.

Paper: BOAT: Bilateral Local Attention Vision Transformer, arXiv 2201.13027. Weights: MIT.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from visionattn.layers import BilateralBlock, Block, ContentAttention, splits_for

from ._checkpoint import KeyMap
from ._pyramid import Pyramid
from ._reference import translate
from ._registry import Family, Paper, Published, register
from .cswin import KEYS as CSWIN_KEYS
from .cswin import cswin
from .swin import AUTHORS as SWIN_KEYS
from .swin import patch_grid, swin, swin_variant

PAPER = Paper("BOAT: Bilateral Local Attention Vision Transformer", "2201.13027")
ORIGIN = "https://github.com/mahaoyuHKU/pytorch-boat"


def boat_swin(
    embed_dim: int = 96,
    depths: Sequence[int] = (2, 2, 6, 2),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    window_size: int = 7,
    img_size: int | tuple[int, int] = 224,
    patch_size: int = 4,
    qkv_bias: bool = True,
    qk_scale: float | None = None,
    overlap: int = 20,
    **kwargs: Any,
) -> Pyramid:
    """Swin whose blocks with shifted windows attend among like pixels too, without drop path.

    Args:
        embed_dim: Channels of the first stage; each next has twice as many.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        window_size: Side of a window.
        img_size: Side or `(height, width)` of the images that windows and the number of clusters are made for. Images
            of other sizes are taken too, with as many clusters.
        patch_size: Side of a patch.
        qkv_bias: Whether qkv projections have a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        overlap: Keys of the other half of the last split that a cluster sees.
        **kwargs: Of `visionattn.models.swin.swin`.
    """
    grid = patch_grid(img_size, patch_size)
    shared: dict[str, Any] = {"qkv_bias": qkv_bias, "qk_scale": qk_scale}
    bilateral = _bilateral(num_heads, grid, False, overlap=overlap, **shared)

    def block(stage: int, index: int) -> Callable[..., nn.Module]:
        # What the reference shifts: every second block, where the map is larger than a window.
        is_shifted = index % 2 == 1 and min(grid) // 2**stage > window_size > 1
        return bilateral(stage) if is_shifted else Block

    return swin(
        embed_dim, depths, num_heads, window_size, img_size, patch_size=patch_size, block=block, **shared, **kwargs
    )


def boat_cswin(
    embed_dim: int = 64,
    depths: Sequence[int] = (1, 2, 21, 1),
    num_heads: Sequence[int] = (2, 4, 8, 16),
    stripe_widths: Sequence[int] = (1, 2, 7, 7),
    img_size: int = 224,
    qkv_bias: bool = True,
    overlap: int = 20,
    content_scale: float | None = 1.0,
    pair_images: bool = False,
    **kwargs: Any,
) -> Pyramid:
    """CSWin whose blocks of even index attend among like pixels too.

    Args:
        embed_dim: Channels of the first stage; each next has twice as many.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        stripe_widths: Pixels across the stripes of each stage.
        img_size: Side of the images that stripes and the number of clusters are made for. Images of other sizes are
            taken too, with as many clusters.
        qkv_bias: Whether qkv projections have a bias.
        overlap: Keys of the other half of the last split that a cluster sees.
        content_scale: Factor on the logits among like pixels; None means `head_dim ** -0.5`. The published weights were
            trained with 1.
        pair_images: Whether, where all pixels are one cluster, each two images that follow each other in a batch see
            keys of the other, as the authors' code has it.
        **kwargs: Of `visionattn.models.cswin.cswin`.
    """
    grid = patch_grid(img_size, 4)
    content: dict[str, Any] = {
        "overlap": overlap,
        "pair_images": pair_images,
        "qkv_bias": qkv_bias,
        "qk_scale": content_scale,
    }
    bilateral = _bilateral(num_heads, grid, True, **content)
    return cswin(
        embed_dim, depths, num_heads, stripe_widths, img_size, qkv_bias=qkv_bias,
        block=lambda stage, index: Block if index % 2 else bilateral(stage), **kwargs,
    )  # fmt: skip


def _bilateral(
    num_heads: Sequence[int], grid: tuple[int, int], drop_content: bool, **content: Any
) -> Callable[[int], Callable[..., nn.Module]]:
    """Blocks with content attention, by stage."""

    def block(stage: int) -> Callable[..., nn.Module]:
        splits = splits_for(*(max(side // 2**stage, 1) for side in grid))
        attention = partial(ContentAttention, num_heads=num_heads[stage], num_splits=splits, **content)
        return partial(BilateralBlock, content=attention, drop_content=drop_content)

    return block


CONTENT = (r"\.(?:attnC|content_attn)\.get_v\.", ".content.lepe."), (r"\.(?:attnC|content_attn)\.", ".content.")
SWIN = KeyMap("BOAT-Swin", (*SWIN_KEYS.keys, *CONTENT, (r"\.norm4\.", ".norm3.")), SWIN_KEYS.constants)
CSWIN = KeyMap("BOAT-CSWin", (*CSWIN_KEYS.keys, *CONTENT))
NAMES = {"depths": "depths", "depth": "depths", "split_size": "stripe_widths"} | {
    name: name for name in ("window_size", "img_size", "ape")
}


def _from_reference(is_cswin: bool, record: Mapping[str, Any]) -> Pyramid | None:
    """Model of a record of one of the hosts; None for one of the other."""
    config = dict(record["config"])
    if ("split_size" in config) != is_cswin:
        return None
    if not is_cswin:
        return boat_swin(**translate(config, NAMES))
    if config.pop("patch_size", 4) != 4:
        raise ValueError(f"patch_size={record['config']['patch_size']} of the reference must be 4")
    args = translate(config, NAMES)
    # The reference hands the one argument over as the other, which a bias makes the factor 1.
    scale = 1.0 if config.get("qkv_bias", True) else None
    return boat_cswin(**args, content_scale=scale, pair_images=True)


def _outputs(after_merge: bool, model: Pyramid, x: Tensor) -> dict[str, Tensor]:
    """What records hold: tokens of each stage, of one host after the downsampler."""
    maps: Any = model.forward_intermediates(x, output_fmt="NHWC", intermediates_only=True)
    last = len(maps) - 1
    stages = [model.advance(i, m) if after_merge and i < last else m for i, m in enumerate(maps)]
    return {"logits": model(x), **{f"stage.{i}": m.flatten(1, 2) for i, m in enumerate(stages)}}


SWIN_VARIANTS = {
    "va_boat_swin_tiny": swin_variant(96, 3, 6, 0.2),
    "va_boat_swin_small": swin_variant(96, 3, 18, 0.3),
    "va_boat_swin_base": swin_variant(128, 4, 18, 0.5),
}


def _cswin(embed_dim: int, num_heads: tuple[int, ...], depths: tuple[int, ...], rate: float) -> dict[str, Any]:
    return {"embed_dim": embed_dim, "depths": depths, "num_heads": num_heads, "drop_path_rate": rate}


CSWIN_VARIANTS = {
    "va_boat_cswin_tiny": _cswin(64, (2, 4, 8, 16), (1, 2, 21, 1), 0.2),
    "va_boat_cswin_small": _cswin(64, (2, 4, 8, 16), (2, 4, 32, 2), 0.4),
    "va_boat_cswin_base": _cswin(96, (4, 8, 16, 32), (2, 4, 32, 2), 0.5),
}
PAIRED = (
    "In the authors' code the last stage of BOAT-CSWin lets two images of a batch that follow each other see a part of "
    "one another, which `pair_images=True` reproduces for batches of even size"
)


def _row(reference: str, file: str, **more: Any) -> Published:
    return Published(reference, f"https://www.dropbox.com/s/{file}?dl=0", is_page=True, **more)


SWIN_WEIGHTS = {
    "va_boat_swin_tiny.in1k": _row("boat_swin_tiny", "xa94uewsrvjglnn/tiny.pth"),
    "va_boat_swin_small.in1k": _row("boat_swin_small", "7ih1zvii3bvdcgd/small.pth"),
    "va_boat_swin_base.in1k": _row("boat_swin_base", "70hr7h0smcr0gr9/base.pth"),
}
MORE: dict[str, Any] = {"crop_pct": 0.9, "note": PAIRED}
CSWIN_WEIGHTS = {
    "va_boat_cswin_tiny.in1k": _row("CSWin_64_12211_tiny_224", "rsmtu6r0v2lt0y5/cswin_tiny.pth.tar", **MORE),
    "va_boat_cswin_small.in1k": _row("CSWin_64_24322_small_224", "cnl00d1faxxoi19/cswin_small.pth.tar", **MORE),
    "va_boat_cswin_base.in1k": _row("CSWin_96_24322_base_224", "92sr8r8zhng1mqg/cswin_base.pth.tar", **MORE),
}

SWIN_MICRO = {"embed_dim": 16, "depths": (2, 1, 1, 1), "num_heads": (1, 2, 2, 4), "window_size": 4, "img_size": 64}
# A wide overlap, for outputs that change less where rounding moves a pixel to another cluster.
CSWIN_MICRO = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (2, 2, 4, 4), "stripe_widths": (1, 3, 2, 2),
               "img_size": 64, "overlap": 48}  # fmt: skip
BOAT_SWIN = Family(
    "boat_swin", "BOAT-Swin", (PAPER,), "mit", ORIGIN, boat_swin, (SWIN,), "boat", partial(_from_reference, False),
    micros={"va_boat_swin_tiny": SWIN_MICRO}, outputs=partial(_outputs, True),
    dense_args={"*": {"output_norms": True}},
)  # fmt: skip
BOAT_CSWIN = Family(
    "boat_cswin", "BOAT-CSWin", (PAPER,), "mit", ORIGIN, boat_cswin, (CSWIN,), "boat", partial(_from_reference, True),
    micros={"va_boat_cswin_tiny": CSWIN_MICRO}, outputs=partial(_outputs, False),
    dense_args={"*": {"output_norms": True}},
)  # fmt: skip
register(__name__, BOAT_SWIN, SWIN_VARIANTS, SWIN_WEIGHTS)
register(__name__, BOAT_CSWIN, CSWIN_VARIANTS, CSWIN_WEIGHTS)
