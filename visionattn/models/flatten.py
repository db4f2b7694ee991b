# SPDX-License-Identifier: Apache-2.0
"""FLatten Transformer: focused linear attention in PVT, PVT v2, Swin and CSWin.

Positive features raised to a power let linear attention concentrate; a convolution of the values restores its rank.

Paper: FLatten Transformer: Vision Transformer using Focused Linear Attention, arXiv 2308.00442.
Weights: no licence named.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ._checkpoint import grid_of
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
from ._mixed import LinearArgs, mixed_cswin, mixed_pvt, mixed_swin
from ._pyramid import Pyramid
from ._registry import Paper

PAPER = Paper("FLatten Transformer: Vision Transformer using Focused Linear Attention", "2308.00442")
ORIGIN = "https://github.com/LeapLabTHU/FLatten-Transformer"


def flatten_swin(
    linear_blocks: Sequence[int] = (2, 2, 0, 0),
    power: float = 3,
    kernel_size: int = 5,
    qkv_bias: bool = True,
    **kwargs: Any,
) -> Pyramid:
    """Swin whose first blocks of each stage have focused linear attention.

    Args:
        linear_blocks: Blocks with linear attention at the start of each stage.
        power: How much features are sharpened.
        kernel_size: Side of the convolution of the values.
        qkv_bias: Whether qkv projections have a bias.
        **kwargs: Of `visionattn.models.swin.swin`.
    """
    args = _args(power, kernel_size, qkv_bias=qkv_bias)
    return mixed_swin("focused_linear", args, linear_blocks, qkv_bias=qkv_bias, **kwargs)


def flatten_pvt(
    linear_blocks: Sequence[int] = (3, 4, 6, 3),
    power: float = 3,
    kernel_size: int = 5,
    qkv_bias: bool = True,
    **kwargs: Any,
) -> Pyramid:
    """PVT whose first blocks of each stage have focused linear attention.

    Args:
        linear_blocks: Blocks with linear attention at the start of each stage.
        power: How much features are sharpened.
        kernel_size: Side of the convolution of the values.
        qkv_bias: Whether projections to queries, keys and values have a bias.
        **kwargs: Of `visionattn.models.pvt.pvt`, and `linear_reductions`: the sides of the patches that linear blocks
            of each stage summarise.
    """
    args = _args(power, kernel_size, qkv_bias=qkv_bias)
    return mixed_pvt("focused_linear", args, linear_blocks, qkv_bias=qkv_bias, **kwargs)


def flatten_pvtv2(**kwargs: Any) -> Pyramid:
    """PVT v2 whose first blocks of each stage have focused linear attention; arguments as those of `flatten_pvt`."""
    return flatten_pvt(overlapping=True, **kwargs)


def flatten_cswin(
    linear_blocks: Sequence[int] = (2, 4, 0, 0),
    power: float = 3,
    kernel_size: int = 5,
    qkv_bias: bool = True,
    **kwargs: Any,
) -> Pyramid:
    """CSWin whose first blocks of each stage have focused linear attention over the whole map.

    Args:
        linear_blocks: Blocks with linear attention at the start of each stage.
        power: How much features are sharpened.
        kernel_size: Side of the convolution of the values, besides that of the host.
        qkv_bias: Whether qkv projections have a bias.
        **kwargs: Of `visionattn.models.cswin.cswin`.
    """
    args = _args(power, kernel_size, local_values=True, qkv_bias=qkv_bias)
    return mixed_cswin("focused_linear", args, linear_blocks, qkv_bias=qkv_bias, **kwargs)


def _args(power: float, kernel_size: int, **more: Any) -> LinearArgs:
    """Arguments of the mixers of each stage."""
    return lambda stage, size: {"power": power, "kernel_size": kernel_size, "map_size": size, **more}


def _planes(table: Tensor, target: Tensor) -> Tensor:
    """`(1, positions, C)` to `(C, h, w)`; the model resizes it where it must be."""
    grid = grid_of(table.shape[1], (target.shape[1], target.shape[2]))
    return table if grid is None else table[0].t().unflatten(1, grid)


KEYS = (
    (r"\.attns\.0\.", ".attn."),
    (r"\.attn\.scale$", ".attn.temperature", lambda tensor, target: tensor.flatten()),
    (r"\.attn\.positional_encoding$", ".attn.key_positions", _planes),
    (r"\.attn\.dwc\.", ".attn.local."),
)
# The authors' PVT has a final norm that it does not use.
CONSTANTS = {"pvt": (r"^norm\.",)}


def _from_reference(host: str, record: Mapping[str, Any]) -> nn.Module | None:
    if host_of(record) != host:
        return None
    args = host_args(record, {"focusing_factor": "power", "kernel_size": "kernel_size"})
    if host == "swin":
        args["window_size"] = 7 if record["config"]["window_size"] <= 56 else 12
    return BUILDERS[host](**args)


BUILDERS: dict[str, Any] = {
    "swin": flatten_swin, "pvt": flatten_pvt, "pvtv2": flatten_pvtv2, "cswin": flatten_cswin}  # fmt: skip

V2_SIZES = {
    "b0": ("tiny", 0.1), "b1": ("tiny", 0.1), "b2": ("small", 0.1), "b3": ("medium", 0.3), "b4": ("large", 0.3),
}  # fmt: skip
V2 = {f"va_flatten_pvtv2_{name}": pvt_sizes({size: rate})[size] for name, (size, rate) in V2_SIZES.items()}
V2["va_flatten_pvtv2_b0"]["dims"] = (32, 64, 160, 256)
V2["va_flatten_pvtv2_b5"] = {"depths": (3, 6, 40, 3), "linear_blocks": (3, 6, 40, 3), "mlp_ratio": (4, 4, 4, 4),
                             "drop_path_rate": 0.3}  # fmt: skip
CSWIN = {**CSWIN_SIZES, "small": {**CSWIN_SIZES["small"], "depths": (2, 4, 32, 2)}}
CSWIN_BLOCKS = {"tiny": (2, 4, 0, 0), "small": (2, 4, 0, 0), "base": (3, 6, 0, 0), "base_384": (3, 6, 0, 0)}
PVT_SIZES = pvt_sizes({"tiny": 0.1, "small": 0.1, "medium": 0.3, "large": 0.3})
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "swin": variants("va_flatten_swin", SWIN_SIZES, dict.fromkeys(SWIN_SIZES, (2, 2, 0, 0))),
    "pvt": {f"va_flatten_pvt_{size}": args for size, args in PVT_SIZES.items()},
    "pvtv2": V2,
    "cswin": variants("va_flatten_cswin", CSWIN, CSWIN_BLOCKS),
}
WEIGHTS = {
    "va_flatten_swin_tiny.in1k": row("flatten_swin_tiny_patch4_224", "e1518e76703e4e57a7f2", 82.1, 95.9),
    "va_flatten_swin_small.in1k": row("flatten_swin_small_patch4_224", "94188e52af354bf4a88b", 83.5),
    "va_flatten_swin_base.in1k": row("flatten_swin_base_patch4_224", "7a9e5186bad04e7fb3a9", 83.8),
    "va_flatten_swin_base_384.in1k": row(
        "flatten_swin_base_patch4_384_finetune", "0d0330cf2e5249f1abb6", 85.0, size=384, crop_pct=1.0),
    "va_flatten_pvt_tiny.in1k": row("flatten_pvt_tiny", "3ab1d773f19d45648690", 77.8, 93.9),
    **{f"va_flatten_pvt_{s}.untrained": row(f"flatten_pvt_{s}", None) for s in ("small", "medium", "large")},
    "va_flatten_pvtv2_b0.in1k": row("flatten_pvt_v2_b0", "5d1f01532b104da28e7b", 71.1, 90.6),
    **{f"va_flatten_pvtv2_b{i}.untrained": row(f"flatten_pvt_v2_b{i}", None) for i in range(1, 6)},
    "va_flatten_cswin_tiny.in1k": row("FLatten_CSWin_tiny", "48ba765ba8b0451d9d5a", 83.1, 96.4),
    **{f"va_flatten_cswin_{s}.untrained": row(f"FLatten_CSWin_{s}", None) for s in ("small", "base")},
    "va_flatten_cswin_base_384.untrained": row("FLatten_CSWin_base_384", None, size=384),
}  # fmt: skip

# A narrow head is often negative in all channels, where float32 leaves little of the gradients: linear blocks have one.
MICRO = {"depths": (1, 2, 1, 1), "dims": (16, 16, 24, 32), "num_heads": (1, 1, 3, 1), "reductions": (4, 2, 2, 1),
             "linear_reductions": (2, 1, 1, 1), "linear_blocks": (1, 1, 0, 1), "mlp_ratio": (2, 2, 3, 3),
             "img_size": 64}  # fmt: skip
TITLES = {"swin": "FLatten-Swin", "pvt": "FLatten-PVT", "pvtv2": "FLatten-PVTv2", "cswin": "FLatten-CSwin"}
FAMILY = HostedFamily(
    "flatten", TITLES, PAPER, ORIGIN, BUILDERS, KEYS, "flatten", _from_reference, {"pvt": MICRO}, CONSTANTS,
    dense_args=LINEAR_DENSE_ARGS,
)  # fmt: skip
register_hosts(__name__, FAMILY, VARIANTS, WEIGHTS)
