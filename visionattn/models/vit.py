# SPDX-License-Identifier: Apache-2.0
"""The plain Vision Transformer around any token mixers, for comparisons between them at one resolution.

Sizes are DeiT's. Without a class token blocks mix maps, and so take every mixer; the head averages the last map.

Paper: An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale, arXiv 2010.11929.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from visionattn.kernels.pattern import ceil_div
from visionattn.layers import MIXERS, PositionEmbedding, pick

from ._class_token import ClassTokenHost
from ._isotropic import Isotropic
from ._reference import no_records
from ._registry import Family, Paper, Published, register
from .pyramid import NAMES, VARIED, usual_args

PAPER = Paper("An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", "2010.11929")
# Stage of a pyramid whose maps have the stride of the patches, for arguments that usually follow the stage.
STAGE = 2


def vit(
    depth: int = 12,
    embed_dim: int = 192,
    num_heads: int = 3,
    img_size: int = 224,
    patch_size: int = 16,
    mixer: str | Sequence[str] = "tokens",
    mixer_args: Mapping[str, Any] | None = None,
    class_token: bool = False,
    **kwargs: Any,
) -> Isotropic:
    """Vision Transformer with any token mixers.

    Args:
        depth: Number of blocks.
        embed_dim: Channels of the tokens.
        num_heads: Heads of the mixers.
        img_size: Side of the images that the position table is made for. Images of other sizes are taken too.
        patch_size: Side of a patch.
        mixer: Name of the mixer, one of `visionattn.layers.MIXERS`, "shifted_window" or "dilated"; or one for each
            block.
        mixer_args: Arguments of the mixers.
        class_token: Whether a class token leads the others and is what the head reads.
        **kwargs: Of `Isotropic`.

    Raises:
        ValueError: If a mixer is unknown, there is not one for each block, or it takes no class token.
    """
    names = [mixer] * depth if isinstance(mixer, str) else list(mixer)
    for name in names:
        pick("mixer", name, dict.fromkeys(NAMES))
    given = dict(mixer_args or {})
    layers = [VARIED[name][0] if name in VARIED else name for name in names]
    token_args = [_token_args(name) if class_token else {} for name in layers]

    def args(block: int) -> dict[str, Any]:
        return {**usual_args(names[block], STAGE, block, given), **token_args[block], **given}

    side = ceil_div(img_size, patch_size)
    shared: dict[str, Any] = {"depth": depth, "dim": embed_dim, "num_heads": num_heads, "patch_size": patch_size}
    shared.update(mixer=layers, mixer_args=args, **kwargs)
    if class_token:
        return ClassTokenHost(map_size=(side, side), **shared)
    model = Isotropic(patch_norm=False, norm_eps=1e-6, **shared)
    model.pos_embed = PositionEmbedding(embed_dim, (side, side))
    return model


def _token_args(name: str) -> dict[str, Any]:
    """Arguments with which a mixer takes tokens that a class token leads."""
    layer = MIXERS[name]
    if "class_token" in inspect.signature(layer).parameters:
        return {"class_token": True}
    if "size" in inspect.signature(layer.forward).parameters:
        return {}
    raise ValueError(f"class_token=True must go with mixers that take tokens; mixer={name!r} takes maps alone")


VARIANTS: dict[str, dict[str, Any]] = {
    "va_vit_tiny": {"embed_dim": 192, "num_heads": 3},
    "va_vit_small": {"embed_dim": 384, "num_heads": 6, "drop_path_rate": 0.1},
    "va_vit_base": {"embed_dim": 768, "num_heads": 12, "drop_path_rate": 0.2},
}
WEIGHTS = {f"{name}.untrained": Published(name.removeprefix("va_"), "") for name in VARIANTS}

MICRO: dict[str, Any] = {"depth": 3, "embed_dim": 16, "num_heads": 2, "img_size": 64}
VIT = Family(
    "vit", "Vision Transformer", (PAPER,), "", PAPER.url, vit, (), "vit", no_records, "stem.proj",
    {"va_vit_tiny": MICRO},
)  # fmt: skip
register(__name__, VIT, VARIANTS, WEIGHTS)
