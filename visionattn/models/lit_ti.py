# SPDX-License-Identifier: Apache-2.0
"""LIT-Ti: the first two stages of a PVT without attention, deformable merging, and a class token in the last stage.

Paper: Less is More: Pay Less Attention in Vision Transformers, arXiv 2105.14217. Weights: Apache-2.0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from visionattn.layers import DeformableMerging

from ._checkpoint import KeyMap, to_stage
from ._class_token import ClassTokenPyramid
from ._reference import translate
from ._registry import Dense, Family, Published, register
from .litv2 import PAPER_V1, pixels_side_by_side
from .pvt import pvt_sides
from .swin import position_planes


def lit_ti(
    depths: Sequence[int] = (3, 4, 6, 3),
    dims: Sequence[int] = (64, 128, 320, 512),
    num_heads: Sequence[int] = (1, 2, 5, 8),
    mlp_ratio: float | Sequence[float] = (8, 8, 4, 4),
    img_size: int = 224,
    qkv_bias: bool = True,
    qk_scale: float | None = None,
    **kwargs: Any,
) -> ClassTokenPyramid:
    """Pyramid of MLPs, then of global attention, with a position table in every stage.

    Args:
        depths: Blocks of each stage.
        dims: Channels of each stage.
        num_heads: Heads of each stage; the first two have no attention.
        mlp_ratio: Hidden width of the MLPs over the channels; or one a stage.
        img_size: Side of the images that position tables are made for. Images of other sizes are taken too.
        qkv_bias: Whether qkv projections have a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        **kwargs: Of `ClassTokenPyramid`.

    Raises:
        ValueError: If there are fewer than two stages, or the image is too small for them.
    """
    sides = pvt_sides(img_size, len(depths))
    sizes = [(side, side) for side in sides]
    model = ClassTokenPyramid(
        depths,
        dims,
        num_heads,
        last_map_size=sizes[-1],
        stem="patch",
        stem_args={"drop_ragged": True},
        downsample="deformable_position",
        # The last stage's table has a vector for the class token too.
        downsample_args=[{"map_size": size} for size in (*sizes[1:-1], None)],
        mixers=[None if i < 2 else "tokens" for i in range(len(depths))],
        mixer_args={"qkv_bias": qkv_bias, "qk_scale": qk_scale},
        mlp_ratio=mlp_ratio,
        position_size=sizes[0],
        position_mode="bilinear",
        norm_eps=1e-6,
        **kwargs,
    )
    for module in model.modules():
        if isinstance(module, DeformableMerging):
            module.init_weights()
    return model


def _first(tensor: Tensor, target: Tensor) -> Tensor:
    """The only row of a table, or the only vector of it."""
    return tensor.reshape(tensor.shape[1:]) if target.ndim == 2 else tensor.flatten()


KEYS = (
    (r"^patch_embed1\.", "stem."),
    (r"^patch_embed(\d)\.dconv\.conv_offset\.", to_stage("down.offset.", 2)),
    (r"^patch_embed(\d)\.dconv\.weight$", to_stage("down.reduction.weight", 2), pixels_side_by_side),
    (r"^patch_embed(\d)\.dconv\.bias$", to_stage("down.reduction.bias", 2)),
    (r"^patch_embed(\d)\.norm_layer\.", to_stage("down.norm.bn.", 2)),
    (r"^pos_embed1$", "pos_embed.table", position_planes),
    (r"^pos_embed4$", "tokens.table", _first),
    (r"^pos_embed(\d)$", to_stage("down.position.table", 2), position_planes),
    (r"^cls_token$", "tokens.class_token", _first),
    (r"^block(\d)\.", to_stage("blocks.")),
    (r"^head\.", "head.fc."),
)
# A backbone of detectors and segmentors has neither.
CLASSIFIER = (r"^tokens\.class_token$", r"^norm\.")
KEY_MAPS = (KeyMap("LIT-Ti", KEYS, spare=CLASSIFIER), KeyMap("visionattn's LIT-Ti", (), spare=CLASSIFIER))
DENSE = {"class_token": False, "final_norm": False}


def _from_reference(record: Mapping[str, Any]) -> ClassTokenPyramid | None:
    config = dict(record["config"])
    if "embed_dims" not in config:
        return None
    for fixed in ("patch_size", "norm_eps"):
        config.pop(fixed, None)
    names = {"depths": "depths", "embed_dims": "dims", "mlp_ratios": "mlp_ratio", "img_size": "img_size"}
    args = translate(config, names)
    return lit_ti(**args, **({} if "num_classes" in config else {**DENSE, "num_classes": 0}))


WEIGHTS = {
    "va_lit_ti.in1k": Published(
        "lit_ti", "https://github.com/ziplab/LIT/releases/download/v1.0/lit_ti.pth", 81.1, None, 19, 3.6,
    )
}  # fmt: skip
RESULTS = (Dense("RetinaNet 1x", 41.6), Dense("Mask R-CNN 1x", 42.0, 39.1), Dense("Semantic FPN 80k", miou=41.3))
MICRO = {"depths": [1, 1, 2, 1], "dims": [16, 32, 40, 64], "img_size": 64}
LIT_TI = Family(
    "lit_ti", "LIT-Ti", (PAPER_V1,), "apache-2.0", "https://github.com/ziplab/LIT", lit_ti, KEY_MAPS, "lit",
    _from_reference, micros={"va_lit_ti": MICRO}, dense_args={"*": DENSE},
)  # fmt: skip
VARIANTS = {"va_lit_ti": {"depths": (3, 4, 6, 3), "drop_path_rate": 0.1}}
register(__name__, LIT_TI, VARIANTS, WEIGHTS, {"va_lit_ti.in1k": RESULTS})
