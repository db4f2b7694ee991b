# SPDX-License-Identifier: Apache-2.0
"""Agent attention in Swin, PVT, CSWin and DeiT: pooled queries stand between queries and keys.

A few agents gather the values of all pixels by a softmax, and every pixel reads the agents by another.

Paper: Agent Attention: On the Integration of Softmax and Linear Attention, arXiv 2312.08874. Weights: no licence named.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ._class_token import ClassTokenHost
from ._hosted import (
    CSWIN_SIZES,
    SWIN_SIZES,
    HostedFamily,
    host_args,
    host_of,
    pvt_sizes,
    register_hosts,
    row,
    variants,
)
from ._mixed import LinearArgs, mixed_cswin, mixed_deit, mixed_pvt, mixed_swin
from ._pyramid import Pyramid
from ._registry import Dense, Paper
from .swin import DENSE_ARGS as SWIN_DENSE_ARGS

PAPER = Paper("Agent Attention: On the Integration of Softmax and Linear Attention", "2312.08874")
ORIGIN = "https://github.com/LeapLabTHU/Agent-Attention"
AGENTS = (9, 16, 49, 49)


def agent_swin(
    linear_blocks: Sequence[int] = (2, 2, 6, 0),
    num_agents: Sequence[int] = AGENTS,
    agent_grids: Sequence[tuple[int, int]] | None = None,
    qkv_bias: bool = True,
    qk_scale: float | None = None,
    **kwargs: Any,
) -> Pyramid:
    """Swin whose first blocks of each stage have agents.

    Args:
        linear_blocks: Blocks with agents at the start of each stage.
        num_agents: Agents in each stage that the position tables are made for, square numbers.
        agent_grids: Rows and columns of agents in each stage; None for squares of `num_agents`.
        qkv_bias: Whether qkv projections have a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        **kwargs: Of `visionattn.models.swin.swin`.
    """
    shared = {"qkv_bias": qkv_bias, "qk_scale": qk_scale}
    return mixed_swin("agent", _args(num_agents, agent_grids, **shared), linear_blocks, **shared, **kwargs)


def agent_pvt(
    linear_blocks: Sequence[int] = (3, 4, 6, 3),
    num_agents: Sequence[int] = AGENTS,
    agent_grids: Sequence[tuple[int, int]] | None = None,
    qkv_bias: bool = True,
    **kwargs: Any,
) -> Pyramid:
    """PVT whose first blocks of each stage have agents; arguments as those of `agent_swin` and of `mixed_pvt`."""
    args = _args(num_agents, agent_grids, qkv_bias=qkv_bias)
    return mixed_pvt("agent", args, linear_blocks, qkv_bias=qkv_bias, **kwargs)


def agent_cswin(
    linear_blocks: Sequence[int] = (2, 4, 0, 0),
    num_agents: Sequence[int] = AGENTS,
    linear_stripes: Sequence[int | None] = (None, None, None, None),
    qkv_bias: bool = True,
    qk_scale: float | None = None,
    **kwargs: Any,
) -> Pyramid:
    """CSWin whose first blocks of each stage have agents.

    Args:
        linear_blocks: Blocks with agents at the start of each stage.
        num_agents: Agents of each stage, square numbers.
        linear_stripes: Pixels across the stripes of these blocks in each stage; None for the whole map.
        qkv_bias: Whether qkv projections have a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        **kwargs: Of `visionattn.models.cswin.cswin`.
    """
    shared = {"qkv_bias": qkv_bias, "qk_scale": qk_scale}
    whole = _args(num_agents, None, **shared)

    def args(stage: int, size: tuple[int, int]) -> dict[str, Any]:
        return {**whole(stage, size), "stripe_width": linear_stripes[stage]}

    return mixed_cswin("agent", args, linear_blocks, **shared, **kwargs)


def agent_deit(
    num_agents: Sequence[int] = (49, 49, 49, 49),
    qkv_bias: bool = True,
    qk_scale: float | None = None,
    **kwargs: Any,
) -> ClassTokenHost:
    """DeiT with agents.

    Args:
        num_agents: Agents of blocks 0 and 1, 2 and 3, 4 to 9, and of those that follow; square numbers.
        qkv_bias: Whether qkv projections have a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        **kwargs: Of `mixed_deit`, `linear_blocks` among them: blocks from there on have softmax attention.
    """
    shared = {"qkv_bias": qkv_bias, "qk_scale": qk_scale}

    def args(block: int, size: tuple[int, int]) -> dict[str, Any]:
        group = (0, 1, 2, 2, 2, 3)[min(block // 2, 5)]
        return {"num_agents": num_agents[group], "map_size": size, **shared}

    return mixed_deit("agent", args, **shared, **kwargs)


def _args(num_agents: Sequence[int], grids: Sequence[tuple[int, int]] | None, **shared: Any) -> LinearArgs:
    """Arguments of the mixers of each stage."""

    def args(stage: int, size: tuple[int, int]) -> dict[str, Any]:
        grid = None if grids is None else grids[stage]
        return {"num_agents": num_agents[stage], "agent_grid": grid, "map_size": size, **shared}

    return args


def _line(table: Tensor, target: Tensor) -> Tensor:
    """`(1, heads, agents, ...)` with one axis of positions to `(heads, agents, n)`."""
    return table[0].flatten(2)


def _line_of_queries(table: Tensor, target: Tensor) -> Tensor:
    """`(1, heads, ..., agents)` with one axis of positions to `(heads, agents, n)`."""
    return table[0].flatten(1, -2).transpose(1, 2)


TABLES = r"(?:an|na|ah|aw|ha|wa|ac|ca)_bias"
KEYS = (
    (rf"\.attn\.({TABLES})$", r".attn.positions.0.\1"),
    (rf"\.attns\.(\d)\.({TABLES})$", r".attn.positions.\1.\2"),
    (r"\.an_bias$", ".key_table"),
    (r"\.na_bias$", ".query_table"),
    (r"\.ah_bias$", ".key_rows", _line),
    (r"\.aw_bias$", ".key_columns", _line),
    (r"\.ha_bias$", ".query_rows", _line_of_queries),
    (r"\.wa_bias$", ".query_columns", _line_of_queries),
    (r"\.ac_bias$", ".key_class", _line),
    (r"\.ca_bias$", ".query_class", _line_of_queries),
    (r"\.attn\.dwc\.", ".attn.lepe.0."),
)


def _from_reference(host: str, record: Mapping[str, Any]) -> nn.Module | None:
    if host_of(record) != host:
        return None
    config = record["config"]
    names = {"agent_num": "num_agents", "downstream_agent_shapes": "agent_grids", "kernel_size": "kernel_size",
             "agent_layer": "linear_blocks", "linear_stripes": "linear_stripes"}  # fmt: skip
    args = host_args(record, names)
    if args.pop("kernel_size", 3) != 3:
        raise ValueError(f"kernel_size={config['kernel_size']} must be 3")
    if host == "swin":
        args["window_size"] = max(7, config["window_size"] // 8)
        args["shift_small_maps"] = "dense" in config["host"]
    return BUILDERS[host](**args)


BUILDERS: dict[str, Any] = {"swin": agent_swin, "pvt": agent_pvt, "cswin": agent_cswin, "deit": agent_deit}

SWIN_BLOCKS = {"tiny": (2, 2, 6, 0), "small": (2, 2, 0, 0), "small_288": (2, 2, 0, 0), "base": (2, 2, 2, 0),
               "base_384": (2, 2, 2, 0)}  # fmt: skip
CSWIN_BLOCKS = {"tiny": (2, 4, 0, 0), **dict.fromkeys(("small", "base", "base_384"), (3, 6, 0, 0))}
SMALL_288 = {**SWIN_SIZES["small"], "window_size": 9, "img_size": 288}
PVT_SIZES = pvt_sizes({"tiny": 0.1, "small": 0.1, "medium": 0.3, "large": 0.3})
SMALL = {"embed_dim": 384, "num_heads": 6, "drop_path_rate": 0.1}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "swin": variants("va_agent_swin", {**SWIN_SIZES, "small_288": SMALL_288}, SWIN_BLOCKS),
    "pvt": {
        **{f"va_agent_pvt_{size}": args for size, args in PVT_SIZES.items()},
        "va_agent_pvt_medium_256": {**PVT_SIZES["medium"], "img_size": 256},
    },
    "cswin": variants("va_agent_cswin", CSWIN_SIZES, CSWIN_BLOCKS),
    "deit": {
        "va_agent_deit_tiny": {"embed_dim": 192, "num_heads": 3},
        "va_agent_deit_small": SMALL,
        "va_agent_deit_small_448": {**SMALL, "img_size": 448},
        "va_agent_deit_base": {"embed_dim": 768, "num_heads": 12, "num_agents": (81, 81, 81, 81), "linear_blocks": 4,
                               "drop_path_rate": 0.3},
    },
}  # fmt: skip
FULL: dict[str, Any] = {"crop_pct": 1.0}
WEIGHTS = {
    "va_agent_swin_tiny.in1k": row("agent_swin_tiny", "a2ddc1190c224f768a41", 82.6, None, 29, 4.5),
    "va_agent_swin_small.in1k": row("agent_swin_small", "f607172c9fea4d6e99bb", 83.7, None, 50, 8.7),
    "va_agent_swin_small_288.in1k": row(
        "agent_swin_small_288", "09760394e93b4046a25e", 84.1, None, 50, 14.6, size=288, **FULL),
    "va_agent_swin_base.in1k": row("agent_swin_base", "4fcd2d0114bb490483c3", 84.0, None, 88, 15.4),
    "va_agent_swin_base_384.in1k": row(
        "agent_swin_base_384", "bb84ee9058954706a557", 84.9, None, 88, 46.3, size=384, **FULL),
    "va_agent_pvt_tiny.in1k": row("agent_pvt_tiny", "13fdf0e0a7c5498c934f", 78.4, None, 11.6, 2.0),
    "va_agent_pvt_small.in1k": row("agent_pvt_small", "36b8be9a8863456685a3", 82.2, None, 20.6, 4.0),
    "va_agent_pvt_medium.in1k": row("agent_pvt_medium", "4d00ecacf18b45f9b88c", 83.4, None, 35.9, 7.0),
    "va_agent_pvt_medium_256.in1k": row(
        "agent_pvt_medium_256", "654df734121643b19c52", 83.8, None, 36.1, 9.2, size=256),
    "va_agent_pvt_large.in1k": row("agent_pvt_large", "040cfe0cfbbe4762ad09", 83.7, None, 48.7, 10.4),
    "va_agent_cswin_tiny.in1k": row("Agent_CSWin_tiny", "8c562a74441e46d5902b", 83.1, None, 21, 4.3),
    "va_agent_cswin_small.in1k": row("Agent_CSWin_small", "30eb8af675bc4b7a8747", 83.9, None, 33, 6.8),
    "va_agent_cswin_base.in1k": row("Agent_CSWin_base", "c8035b0839b2410c8c9f", 84.7, None, 73, 14.9),
    "va_agent_cswin_base_384.in1k": row(
        "Agent_CSWin_base_384", "1239be0df44b47719432", 85.8, None, 73, 46.3, size=384),
    "va_agent_deit_tiny.in1k": row("agent_deit_tiny", "57e0904221824ee7b7af", 74.9, None, 6.0, 1.2),
    "va_agent_deit_small.in1k": row("agent_deit_small", "fdd43304372541db8ea7", 80.5, None, 22.7, 4.4),
    "va_agent_deit_small_448.in1k": row(
        "agent_deit_small_448", "a228f86241c445f1969b", 83.1, None, 23.1, 17.7, size=448),
    "va_agent_deit_base.in1k": row("agent_deit_base", "5115f15fdd7e4ab58fbc", 82.0, None, 87.2, 17.6),
}  # fmt: skip

FEW = {"num_agents": (4, 9, 4, 4), "img_size": 64}
MICROS: dict[str, dict[str, Any]] = {
    "pvt": {"depths": (1, 2, 1, 1), "dims": (16, 16, 24, 32), "num_heads": (1, 2, 3, 4), "reductions": (4, 2, 2, 1),
            "linear_reductions": (2, 1, 1, 1), "linear_blocks": (1, 1, 0, 1), "mlp_ratio": (2, 2, 3, 3),
            "agent_grids": ((3, 2), (3, 3), (2, 2), (2, 2)), **FEW},
    "cswin": {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (2, 2, 4, 4), "stripe_widths": (1, 3, 2, 2),
              "linear_blocks": (1, 1, 0, 0), "linear_stripes": (None, 3, None, None), **FEW},
    "deit": {"embed_dim": 16, "depth": 3, "num_heads": 2, "patch_size": 8, "linear_blocks": 2, **FEW},
}  # fmt: skip
TITLES = {"swin": "Agent-Swin", "pvt": "Agent-PVT", "cswin": "Agent-CSwin", "deit": "Agent-DeiT"}
DENSE_ARGS = {
    "swin": {**SWIN_DENSE_ARGS, "agent_grids": ((9, 9), (12, 12), (14, 14), (7, 7))},
    "pvt": {"agent_grids": ((12, 12), (16, 16), (28, 28), (28, 28))},
    "cswin": {"output_norms": True},  # the authors published none
}
FAMILY = HostedFamily(
    "agent", TITLES, PAPER, ORIGIN, BUILDERS, KEYS, "agent_attention", _from_reference, MICROS, dense_args=DENSE_ARGS
)


def _pvt_results(mask_rcnn: tuple[float, float], retinanet: float, fpn: float) -> tuple[Dense, ...]:
    return (
        Dense("Mask R-CNN 1x", *mask_rcnn),
        Dense("RetinaNet 1x", retinanet),
        Dense("Semantic FPN 40k", miou=fpn),
    )


DENSE = {
    "va_agent_swin_tiny.in1k": (
        Dense("Mask R-CNN 1x", 44.6, 40.7),
        Dense("Mask R-CNN 3x", 47.3, 42.7),
        Dense("Cascade Mask R-CNN 1x", 49.2, 42.7),
        Dense("Cascade Mask R-CNN 3x", 51.4, 44.5),
        Dense("UPerNet 160k", miou=46.68),
    ),
    "va_agent_swin_small.in1k": (
        Dense("Mask R-CNN 1x", 47.2, 42.7),
        Dense("Mask R-CNN 3x", 48.9, 43.8),
        Dense("Cascade Mask R-CNN 3x", 52.6, 45.5),
        Dense("UPerNet 160k", miou=48.08),
    ),
    "va_agent_swin_base.in1k": (Dense("Cascade Mask R-CNN 3x", 52.6, 45.3), Dense("UPerNet 160k", miou=48.73)),
    "va_agent_pvt_tiny.in1k": _pvt_results((41.4, 38.7), 40.3, 40.18),
    "va_agent_pvt_small.in1k": _pvt_results((44.5, 41.2), 44.1, 44.18),
    "va_agent_pvt_medium.in1k": _pvt_results((45.9, 42.0), 45.8, 44.30),
    "va_agent_pvt_large.in1k": _pvt_results((46.9, 42.8), 46.8, 46.52),
}
register_hosts(__name__, FAMILY, VARIANTS, WEIGHTS, DENSE)
