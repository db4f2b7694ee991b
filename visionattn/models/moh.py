# SPDX-License-Identifier: Apache-2.0
"""MoH-ViT: TransNeXt whose attention heads are experts, of which every pixel is routed to some.

Paper: MoH: Multi-Head Attention as Mixture-of-Head Attention, arXiv 2410.11842. Weights: Apache-2.0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from visionattn.layers import watch_imbalance

from ._checkpoint import KeyMap
from ._pyramid import MixerArgs, Pyramid
from ._reference import translate
from ._registry import Family, Paper, Published, register
from .transnext import AUTHORS as TRANSNEXT_KEYS
from .transnext import foveal_args, transnext

PAPER = Paper("MoH: Multi-Head Attention as Mixture-of-Head Attention", "2410.11842")
HUB = "https://huggingface.co/Chat-UniVi"


def moh(
    dims: Sequence[int] = (72, 144, 288, 576),
    depths: Sequence[int] = (5, 5, 22, 5),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    shared_heads: Sequence[int | None] = (3, 6, 3, 4),
    top_k: Sequence[int | None] = (0, 0, 6, 12),
    reductions: Sequence[int] = (8, 4, 2, 1),
    window_sizes: Sequence[int | None] | int = 3,
    pool_size: int | None = None,
    img_size: int = 224,
    pretrain_size: int | None = None,
    dense: str | None = None,
    qkv_bias: bool = True,
    mixers: str | Sequence[str | None | Sequence[str | None]] | None = None,
    mixer_args: MixerArgs | None = None,
    **kwargs: Any,
) -> Pyramid:
    """TransNeXt with routed heads.

    Args:
        dims: Channels of each stage.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        shared_heads: Heads of each stage that every pixel uses; None for a quarter.
        top_k: Heads of each stage that a pixel uses of the others, 0 where there are none; None for half of them.
        reductions: As for `transnext`, and so are the arguments that follow.
        window_sizes: Side of the window around each pixel; or one a stage, None where there is none.
        pool_size: Rows and columns of averages in all stages; None for as many as `reductions` gives.
        img_size: Side of the images. Images of other sizes are taken too.
        pretrain_size: Side of the images that position biases were trained with; None for `img_size`.
        dense: "interpolate" or "extrapolate" as dense-prediction backbones do; None is the classifier.
        qkv_bias: Whether projections to queries, keys and values have a bias.
        mixers: Other token mixers, as `Pyramid` takes them; then `mixer_args` are theirs.
        mixer_args: Arguments of other mixers.
        **kwargs: Of `transnext`.

    Raises:
        ValueError: If `shared_heads` or `top_k` have not one entry a stage or do not fit the heads, or as `transnext`
            says.
    """
    for name, values in (("shared_heads", shared_heads), ("top_k", top_k)):
        if len(values) != len(depths):
            raise ValueError(f"{name}={tuple(values)} must have one entry for each of the {len(depths)} stages")
    windows = [window_sizes] * len(depths) if isinstance(window_sizes, int) else window_sizes
    trained = img_size if pretrain_size is None else pretrain_size
    foveal = foveal_args(windows, reductions, pool_size, img_size, trained, dense, qkv_bias)

    def routed(stage: int, block: int) -> dict[str, Any]:
        return {**foveal(stage, block), "shared_heads": shared_heads[stage], "top_k": top_k[stage]}

    return transnext(
        dims,
        depths,
        num_heads,
        reductions,
        windows,
        pool_size,
        img_size,
        pretrain_size,
        dense,
        mixers=mixers or ["moh_cosine_global" if reduction == 1 else "moh_aggregated" for reduction in reductions],
        mixer_args=routed if mixers is None else mixer_args,
        **kwargs,
    )


AUTHORS = KeyMap(
    "MoH",
    (
        *TRANSNEXT_KEYS.keys,
        (r"\.attn\.wg\.", ".attn.router.routed."),
        (r"\.attn\.wg_1\.", ".attn.router.shared."),
        (r"\.attn\.wg_0\.", ".attn.router.groups."),
    ),
    TRANSNEXT_KEYS.constants,
)


def _from_reference(record: Mapping[str, Any]) -> Pyramid:
    config = {name: value for name, value in record["config"].items() if name not in ("patch_size", "norm_eps")}
    args = translate(config, {"depths": "depths", "embed_dims": "dims", "mlp_ratios": "mlp_ratio",
                              "img_size": "img_size", "sr_ratios": "reductions", "window_size": "window_sizes",
                              "fixed_pool_size": "pool_size", "pretrain_size": "pretrain_size",
                              "shared_head": "shared_heads", "routed_head": "top_k"})  # fmt: skip
    args.pop("qk_scale")  # the reference has none
    return moh(**args)


def _outputs(model: Pyramid, x: Tensor) -> dict[str, Tensor]:
    """What records hold: logits, and how unevenly each router chooses."""
    with watch_imbalance(model) as imbalances:
        logits = model(x)
    return {"logits": logits, "load_balance": torch.stack(imbalances)}


SMALL: dict[str, Any] = {"depths": (5, 5, 22, 5), "drop_path_rate": 0.45}
BASE: dict[str, Any] = {"dims": (96, 192, 384, 768), "depths": (5, 5, 23, 5), "num_heads": (4, 8, 16, 32),
                        "drop_path_rate": 0.6}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "va_moh_vit_small_75": SMALL,
    "va_moh_vit_small_80": {**SMALL, "shared_heads": (3, 6, 3, 8)},
    "va_moh_vit_base_50": {**BASE, "shared_heads": (2, 2, 2, 4), "top_k": (2, 4, 6, 8)},
    "va_moh_vit_base_75": {**BASE, "shared_heads": (4, 8, 4, 5), "top_k": (0, 0, 8, 16)},
}


def _row(size: str, share: int, top1: float, params_m: float) -> Published:
    note = f"{share} % of the heads are used; the address is the page of the repository that holds the file"
    page = f"{HUB}/MoH-ViT-{size[0].upper()}-{share}"
    return Published(f"moh_transnext_{size}_{share}", page, top1, None, params_m, note=note, is_page=True)


WEIGHTS = {
    "va_moh_vit_small_75.in1k": _row("small", 75, 84.6, 50),
    "va_moh_vit_small_80.in1k": _row("small", 80, 84.7, 50),
    "va_moh_vit_base_50.in1k": _row("base", 50, 84.7, 90),
    "va_moh_vit_base_75.in1k": _row("base", 75, 84.9, 90),
}

# Each pixel uses all routed heads: in low precision near ties choose otherwise, which changes a small model by much.
MICRO: dict[str, Any] = {"dims": (16, 24, 32, 48), "depths": (1, 1, 1, 1), "num_heads": (2, 2, 2, 2),
                         "shared_heads": (2, 1, 0, 1), "top_k": (0, 1, 2, 1), "reductions": (4, 2, 2, 1),
                         "mlp_ratio": (2, 2, 3, 3), "img_size": 64}  # fmt: skip
MOH = Family(
    "moh", "MoH-ViT", (PAPER,), "apache-2.0", "https://github.com/SkyworkAI/MoH", moh, (AUTHORS,), "moh",
    _from_reference, micros={"va_moh_vit_small_75": MICRO}, outputs=_outputs,
    dense_args={"*": {"dense": "interpolate", "img_size": 512, "pretrain_size": 224}},
)  # fmt: skip
register(__name__, MOH, VARIANTS, WEIGHTS)
