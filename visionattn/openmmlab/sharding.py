# SPDX-License-Identifier: Apache-2.0
"""Fully sharded data parallelism (FSDP2): every process keeps a part of each weight, gradient and optimizer state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

FULLY_SHARD = "FullyShard"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def shard(model: nn.Module, min_parameters: int = 100_000, dtype: str | None = None) -> nn.Module:
    """Shard `model` over all processes, block by block; the model itself, changed.

    Papers: ZeRO, https://arxiv.org/abs/1910.02054; PyTorch FSDP, https://arxiv.org/abs/2304.11277.

    Args:
        model: On its device; all processes have the same weights.
        min_parameters: Least parameters of a block that is gathered on its own; smaller ones go with what is around.
        dtype: "bfloat16" or "float16" for gathered weights and gradients; None for their own.

    Raises:
        ValueError: An argument is not among the allowed values.
    """
    if min_parameters < 1:
        raise ValueError(f"model_wrapper_cfg.min_parameters={min_parameters} must be at least 1")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"model_wrapper_cfg.dtype={dtype!r} must be one of {', '.join(DTYPES)}, or None")
    settings: dict[str, Any] = {}
    if dtype is not None:
        settings["mp_policy"] = MixedPrecisionPolicy(param_dtype=DTYPES[dtype], reduce_dtype=torch.float32)
    mesh = torch.distributed.init_device_mesh(
        next(model.parameters()).device.type, (torch.distributed.get_world_size(),)
    )
    for block in _blocks(model, min_parameters):
        fully_shard(block, mesh=mesh, **settings)
    fully_shard(model, mesh=mesh, **settings)
    return model


def _blocks(model: nn.Module, min_parameters: int) -> list[nn.Module]:
    """Members of lists that have enough parameters, innermost only."""
    lists = (nn.ModuleList, nn.ModuleDict, nn.Sequential)  # whose members may be called without them
    members = dict.fromkeys(child for m in model.modules() if isinstance(m, lists) for child in m.children())
    big = {m for m in members if not isinstance(m, lists) and _size(m) >= min_parameters}
    return [m for m in members if m in big and not any(part in big for part in m.modules() if part is not m)]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def is_sharded(model: nn.Module) -> bool:
    """Whether parameters of `model` are spread over processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(value: Any) -> Any:
    """The same nested state with every tensor whole and on the CPU; all processes must call it."""
    if isinstance(value, DTensor):
        return value.full_tensor().cpu()
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: whole(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(whole(part) for part in value)
    return value


def parts_like(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """This process's parts of whole tensors, spread as those of `own` are."""
    return {key: _part(value, own.get(key)) for key, value in state.items()}


def optimizer_parts(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """This process's part of an optimizer's whole state."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries = {
        number: {name: _part(value, parameters[number]) for name, value in entry.items()}
        for number, entry in state["state"].items()
    }
    return {**state, "state": entries}


def _part(value: Any, like: Tensor | None) -> Any:
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value  # steps are plain numbers
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
