# SPDX-License-Identifier: Apache-2.0
"""InLine attention in Swin, PVT, CSWin and DeiT: linear attention whose weights tell all queries apart.

Weights are linear in the logits and sum to one; a convolution with kernels of each sample's own sees the surroundings.

Paper: Bridging the Divide: Reconsidering Softmax and Linear Attention, arXiv 2412.06590. Weights: no licence named.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ._class_token import ClassTokenHost
from ._hosted import (
    CSWIN_SIZES,
    LINEAR_DENSE_ARGS,
    SWIN_SIZES,
    HostedFamily,
    host_args,
    host_of,
    pvt_sizes,
    register_hosts,
    row,
    variants,
)
from ._mixed import mixed_cswin, mixed_deit, mixed_pvt, mixed_swin
from ._pyramid import Pyramid
from ._registry import Paper

PAPER = Paper("Bridging the Divide: Reconsidering Softmax and Linear Attention", "2412.06590")
ORIGIN = "https://github.com/LeapLabTHU/InLine"


def inline_swin(
    linear_blocks: Sequence[int] = (2, 2, 6, 0),
    qkv_bias: bool = True,
    qk_scale: float | None = None,
    **kwargs: Any,
) -> Pyramid:
    """Swin whose first blocks of each stage have InLine attention.

    Args:
        linear_blocks: Blocks with InLine attention at the start of each stage.
        qkv_bias: Whether qkv projections have a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        **kwargs: Of `visionattn.models.swin.swin`.
    """
    shared = {"qkv_bias": qkv_bias, "qk_scale": qk_scale}
    return mixed_swin("inline", lambda stage, size: shared, linear_blocks, **shared, **kwargs)


def inline_pvt(linear_blocks: Sequence[int] = (3, 4, 6, 3), qkv_bias: bool = True, **kwargs: Any) -> Pyramid:
    """PVT whose first blocks of each stage have InLine attention.

    Args:
        linear_blocks: Blocks with InLine attention at the start of each stage.
        qkv_bias: Whether projections to queries, keys and values have a bias.
        **kwargs: Of `visionattn.models.pvt.pvt`.
    """
    shared = {"qkv_bias": qkv_bias}
    return mixed_pvt("inline", lambda stage, size: shared, linear_blocks, **shared, **kwargs)


def inline_cswin(
    linear_blocks: Sequence[int] = (2, 4, 0, 0),
    qkv_bias: bool = True,
    qk_scale: float | None = None,
    **kwargs: Any,
) -> Pyramid:
    """CSWin whose first blocks of each stage have InLine attention over the whole map.

    Args:
        linear_blocks: Blocks with InLine attention at the start of each stage.
        qkv_bias: Whether qkv projections have a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        **kwargs: Of `visionattn.models.cswin.cswin`.
    """
    shared = {"qkv_bias": qkv_bias, "qk_scale": qk_scale}
    args = {**shared, "local_values": True, "takes_input": True}
    return mixed_cswin("inline", lambda stage, size: args, linear_blocks, **shared, **kwargs)


def inline_deit(qkv_bias: bool = True, qk_scale: float | None = None, **kwargs: Any) -> ClassTokenHost:
    """DeiT with InLine attention.

    Args:
        qkv_bias: Whether qkv projections have a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        **kwargs: Of `visionattn.models._mixed.mixed_deit`.
    """
    shared = {"qkv_bias": qkv_bias, "qk_scale": qk_scale}
    return mixed_deit("inline", lambda block, size: shared, **shared, **kwargs)


KEYS = ((r"\.attns\.0\.", ".attn."), (r"\.attn\.residual\.", ".attn.taps."))


def _from_reference(host: str, record: Mapping[str, Any]) -> nn.Module | None:
    if host_of(record) != host:
        return None
    args = host_args(record, {})
    if host == "swin":
        args["window_size"] = max(7, record["config"]["window_size"] // 8)
    return BUILDERS[host](**args)


BUILDERS: dict[str, Any] = {"swin": inline_swin, "pvt": inline_pvt, "cswin": inline_cswin, "deit": inline_deit}

SWIN_BLOCKS = {"tiny": (2, 2, 6, 0), "small": (2, 2, 0, 0), "base": (2, 2, 2, 0), "base_384": (2, 2, 2, 0)}
CSWIN_BLOCKS = {"tiny": (2, 4, 0, 0), **dict.fromkeys(("small", "base", "base_384"), (3, 6, 0, 0))}
PVT_SIZES = pvt_sizes({"tiny": 0.1, "small": 0.1, "medium": 0.3, "large": 0.3}, num_heads=(2, 4, 10, 16))
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "swin": variants("va_inline_swin", SWIN_SIZES, SWIN_BLOCKS),
    "pvt": {f"va_inline_pvt_{size}": args for size, args in PVT_SIZES.items()},
    "cswin": variants("va_inline_cswin", CSWIN_SIZES, CSWIN_BLOCKS),
    "deit": {
        "va_inline_deit_tiny": {"embed_dim": 192, "num_heads": 6, "drop_path_rate": 0.1},
        "va_inline_deit_small": {"embed_dim": 320, "num_heads": 10, "img_size": 288, "drop_path_rate": 0.1},
        "va_inline_deit_base": {"embed_dim": 384, "num_heads": 12, "img_size": 448, "drop_path_rate": 0.1},
    },
}
OTHER = "The README's parameter counts of InLine-CSwin do not fit the published code, which has 20.6, 33.0 and 73.4 M"
WEIGHTS = {
    "va_inline_swin_tiny.in1k": row("inline_swin_tiny", "32810869fcc34410966b", 82.4, None, 30, 4.5),
    "va_inline_swin_small.in1k": row("inline_swin_small", "e9657fd247c04c7cb1a1", 83.6, None, 50, 8.7),
    "va_inline_swin_base.in1k": row("inline_swin_base", "bf23564bb64c420aafe1", 84.1, None, 88, 15.4),
    "va_inline_swin_base_384.untrained": row("inline_swin_base_384", None, size=384, crop_pct=1.0),
    "va_inline_pvt_tiny.in1k": row("inline_pvt_tiny", "90ac52b1555b401eb5e6", 78.2, None, 12.0, 2.0),
    "va_inline_pvt_small.in1k": row("inline_pvt_small", "1ab953b2479d433080a3", 82.0, None, 21.6, 3.9),
    "va_inline_pvt_medium.in1k": row("inline_pvt_medium", "a72aec31e6084bc0a280", 83.2, None, 37.6, 6.9),
    "va_inline_pvt_large.in1k": row("inline_pvt_large", "efd91318ba964f01b288", 83.6, None, 50.2, 10.2),
    "va_inline_cswin_tiny.in1k": row(
        "inline_cswin_tiny", "49fa2ecc543647c4b970", 83.2, None, 25, 4.3, params_differ=OTHER),
    "va_inline_cswin_small.in1k": row(
        "inline_cswin_small", "59f4e65f776f4052b93c", 83.8, None, 43, 6.8, params_differ=OTHER),
    "va_inline_cswin_base.in1k": row(
        "inline_cswin_base", "91e17121df284ae38521", 84.5, None, 96, 14.9, params_differ=OTHER),
    "va_inline_cswin_base_384.untrained": row("inline_cswin_base_384", None, size=384),
    "va_inline_deit_tiny.in1k": row("inline_deit_tiny", "1d6b8191ad6d4114b291", 74.5, None, 6.5, 1.1),
    "va_inline_deit_small.in1k": row("inline_deit_small", "2f3898b07e9247f3beb3", 80.2, None, 16.7, 5.0, size=288),
    "va_inline_deit_base.in1k": row("inline_deit_base", "10bdd726d4b0435eb34e", 82.3, None, 23.8, 17.2, size=448),
}  # fmt: skip

MICROS: dict[str, dict[str, Any]] = {
    "cswin": {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (2, 2, 4, 4), "stripe_widths": (1, 3, 2, 2),
              "linear_blocks": (1, 1, 0, 0), "img_size": 64},
    "deit": {"embed_dim": 16, "depth": 3, "num_heads": 2, "patch_size": 8, "img_size": 64},
}  # fmt: skip
TITLES = {"swin": "InLine-Swin", "pvt": "InLine-PVT", "cswin": "InLine-CSwin", "deit": "InLine-DeiT"}
FAMILY = HostedFamily(
    "inline", TITLES, PAPER, ORIGIN, BUILDERS, KEYS, "inline", _from_reference, MICROS, dense_args=LINEAR_DENSE_ARGS
)
register_hosts(__name__, FAMILY, VARIANTS, WEIGHTS)
