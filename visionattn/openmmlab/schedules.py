# SPDX-License-Identifier: Apache-2.0
"""timm's learning-rate schedules and optimizers under mmengine's Runner."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from mmengine.registry import OPTIMIZERS, PARAM_SCHEDULERS
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import nn

from visionattn.layers import unknown

SCHEDULES = ("cosine", "step", "multistep", "poly", "tanh", "constant")


@PARAM_SCHEDULERS.register_module()
class TimmSchedule(_ParamScheduler):
    """One of timm's schedules, set anew at every step; it follows from the step alone, so that resuming is exact.

    A config gives `convert_to_iter_based=True` with it, by which mmengine hands over the steps of an epoch.

    The rates of layers keep their ratios (layer decay): the schedule is that of the highest one.

    Args:
        optimizer: Given by the runner.
        epoch_length: Steps of an epoch, given by the runner.
        end: Epochs of the run, those of the cooldown included; the runner's by default.
        schedule: "cosine", "step", "multistep", "poly", "tanh" or "constant".
        warmup_epochs: Epochs in which the rate rises linearly.
        warmup_factor: Where it rises from, in parts of the learning rate.
        min_factor: Where it falls to, in parts of the learning rate.
        cooldown_epochs: Epochs at the lowest rate, the last ones of the run.
        warmup_prefix: Begin the schedule after the warm-up, in place of cutting off its beginning.
        decay_epochs: Epochs between two steps, or those of the steps, of "step" and "multistep".
        decay_rate: Factor of a step.
        by_epoch: Must be True: epochs are what the lengths are in.
        last_step: As for mmengine's schedules.

    Raises:
        ValueError: A value is not allowed.
    """

    def __init__(
        self,
        optimizer: Any,
        epoch_length: int,
        end: int,
        schedule: str = "cosine",
        warmup_epochs: float = 0,
        warmup_factor: float = 1e-3,
        min_factor: float = 1e-2,
        cooldown_epochs: int = 0,
        warmup_prefix: bool = False,
        decay_epochs: int | list[int] = 30,
        decay_rate: float = 0.1,
        by_epoch: bool = True,
        last_step: int = -1,
    ) -> None:
        if schedule not in SCHEDULES:
            raise ValueError(f"param_scheduler.schedule={schedule!r} must be one of {', '.join(SCHEDULES)}")
        if not by_epoch:
            raise ValueError("param_scheduler.by_epoch=False: TimmSchedule counts epochs; train by epochs")
        for name, value in (("warmup_epochs", warmup_epochs), ("cooldown_epochs", cooldown_epochs)):
            if value < 0:
                raise ValueError(f"param_scheduler.{name}={value} must not be negative")
        epochs = end - cooldown_epochs - (warmup_epochs if warmup_prefix else 0)
        if epochs < 1:
            raise ValueError(
                f"param_scheduler: nothing is left of {end} epochs after warmup_epochs={warmup_epochs} and "
                f"cooldown_epochs={cooldown_epochs}"
            )
        for name, value in (("warmup_factor", warmup_factor), ("min_factor", min_factor)):
            if not 0 <= value <= 1:
                raise ValueError(f"param_scheduler.{name}={value} must lie in [0, 1]")
        steps = [decay_epochs] if isinstance(decay_epochs, int) else list(decay_epochs)
        highest = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        # In steps from the beginning: warm-ups may be parts of an epoch.
        create: Any = create_scheduler_v2
        self._relative, _ = create(
            highest,
            sched="step" if schedule == "constant" else schedule,
            num_epochs=epochs,
            warmup_epochs=warmup_epochs,
            warmup_lr=warmup_factor,
            min_lr=min_factor,
            cooldown_epochs=0,
            warmup_prefix=warmup_prefix,
            decay_epochs=steps[0],
            decay_milestones=steps,
            decay_rate=1.0 if schedule == "constant" else decay_rate,
            step_on_epochs=False,
            updates_per_epoch=epoch_length,
        )
        super().__init__(optimizer, "lr", by_epoch=False, last_step=last_step)

    @classmethod
    def build_iter_from_epoch(cls, *args: Any, **kwargs: Any) -> TimmSchedule:
        """The schedule: its lengths are in epochs anyway."""
        return cls(*args, **kwargs)

    def factor(self, step: int) -> float:
        """Learning rate at a step, in parts of the recipe's."""
        values = self._relative._get_values(step, on_epoch=False)
        assert values is not None
        return float(values[0])

    def state_dict(self) -> dict[str, Any]:
        """Plain values only: the schedule itself is in the config."""
        return {key: value for key, value in super().state_dict().items() if key != "_relative"}

    def _get_value(self) -> list[float]:
        return [base * self.factor(self.last_step) for base in self.base_values]


@OPTIMIZERS.register_module()
class TimmOptimizer:
    """One of timm's optimizers (`timm.optim.list_optimizers`), as `optimizer=dict(type="TimmOptimizer", opt="lamb")`.

    Args:
        params: Parameter groups.
        opt: timm's name.
        kwargs: Further arguments: `lr`, `weight_decay`, `momentum`, …

    Raises:
        ValueError: timm has no such optimizer.
    """

    def __new__(cls, params: Any, opt: str, **kwargs: Any) -> Any:
        """The optimizer itself."""
        known = [str(name) for name in list_optimizers()]
        if opt.lower() not in known:
            raise ValueError(unknown("optimizer", opt, known))
        return create_optimizer_v2(params, opt=opt, **kwargs)
