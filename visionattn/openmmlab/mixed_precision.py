# SPDX-License-Identifier: Apache-2.0
"""Training in bfloat16 on any device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Forward passes under `torch.autocast` in bfloat16, on a CPU too; weights and optimizer stay in float32.

    bfloat16 has float32's range, so that the loss needs no scaling. For float16 there is mmengine's AmpOptimWrapper.

    Args:
        dtype: "bfloat16".
        **kwargs: As for `OptimWrapper`: `optimizer`, `clip_grad`, `accumulative_counts`.

    Raises:
        ValueError: `dtype` is another.
    """

    def __init__(self, dtype: str = "bfloat16", **kwargs: Any) -> None:
        if dtype not in ("bfloat16", torch.bfloat16):
            raise ValueError(
                f"optim_wrapper.dtype={dtype!r} must be 'bfloat16'; float16 needs AmpOptimWrapper and a GPU"
            )
        super().__init__(**kwargs)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Context of a forward pass."""
        with super().optim_context(model), torch.autocast(get_device().split(":")[0], torch.bfloat16):
            yield
