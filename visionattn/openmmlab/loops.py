# SPDX-License-Identifier: Apache-2.0
"""Training by steps or epochs that resumes at its place in the data, without loading what came before."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.runner.utils import calc_dynamic_intervals
from torch.utils.data import DataLoader, IterableDataset

from visionattn.openmmlab.loading import NumberedBatches, rebuilt


class EndlessBatches:
    """Batches of a loader, over and over. Nothing is loaded before the first one is asked for.

    Args:
        loader: Its sampler may be endless itself, or be told the pass by `set_epoch`.
        start: Batches that were taken before, which are left out.
    """

    def __init__(self, loader: DataLoader, start: int = 0) -> None:
        self.loader = loader
        self.start = start
        self.batches: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        batches = self.batches
        if batches is None:
            told_the_pass = hasattr(self._sampler, "set_epoch") and hasattr(self._sampler, "epoch")
            self.epoch, skip = divmod(self.start, len(self.loader)) if told_the_pass else (0, self.start)
            batches = self._begin(skip)
        try:
            return next(batches)
        except StopIteration:
            self.epoch += 1
            return next(self._begin())

    @property
    def _sampler(self) -> Any:
        return getattr(self.loader.batch_sampler, "sampler", None)

    def _begin(self, skip: int = 0) -> Iterator[Any]:
        numbered = self.loader.batch_sampler
        if isinstance(numbered, NumberedBatches):
            numbered.skip = skip
            skip = 0
        if hasattr(self._sampler, "set_epoch"):
            self._sampler.set_epoch(self.epoch)
        self.batches = batches = iter(self.loader)
        for _ in range(skip):  # a data set that seeds itself
            next(batches)
        return batches


@LOOPS.register_module()
class ResumableIterLoop(IterBasedTrainLoop):
    """mmengine's loop by steps; a resumed run begins at once, with the batch that was next.

    Args:
        runner: The runner.
        dataloader: Loader, or a config of one.
        max_iters: Steps in all.
        val_begin: First step that may be validated.
        val_interval: Steps between validations; the last step is always validated.
        dynamic_intervals: `(step, interval)` each: another interval from a step on.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: DataLoader | dict,
        max_iters: int,
        val_begin: int = 1,
        val_interval: int = 1000,
        dynamic_intervals: list[tuple[int, int]] | None = None,
    ) -> None:
        # Not the parent's, which starts the loader's workers before it is known where to begin.
        BaseLoop.__init__(self, runner, dataloader)
        for name, value in (("max_iters", max_iters), ("val_interval", val_interval)):
            if int(value) != value or value < 1:
                raise ValueError(f"train_cfg.{name}={value} must be a whole number of at least 1")
        self._max_iters, self._max_epochs = int(max_iters), 1
        self._iter = self._epoch = 0
        self.val_begin, self.val_interval = val_begin, int(val_interval)
        self.stop_training = False  # mmengine's EarlyStoppingHook sets it
        self.runner.visualizer.dataset_meta = getattr(self.dataloader.dataset, "metainfo", None)
        self.dynamic_milestones, self.dynamic_intervals = calc_dynamic_intervals(self.val_interval, dynamic_intervals)

    def validates_after(self, step: int) -> bool:
        """Whether a validation follows a step, counted from 1."""
        self._decide_current_val_interval()
        return self.runner.val_loop is not None and (
            step == self._max_iters or (step >= self.val_begin and step % self.val_interval == 0)
        )

    def run(self) -> Any:
        """Train up to the last step."""
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")  # mmengine takes the whole training for one epoch
        batches = EndlessBatches(self.dataloader, self._iter)
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(batches))
            if self.validates_after(self._iter):
                self.runner.val_loop.run()
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model


@LOOPS.register_module()
class ResumableEpochLoop(EpochBasedTrainLoop):
    """mmengine's loop by epochs, with its arguments; a run resumed within one begins with the batch that was next."""

    def run_epoch(self) -> None:
        """The epoch, or what a resumed run has not trained of it."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        done = self._iter - self._epoch * len(self.dataloader)
        for number, batch in enumerate(batches_after(self.dataloader, done), done):
            self.run_iter(number, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1


def batches_after(loader: DataLoader, count: int) -> Iterable[Any]:
    """Batches of a loader's pass without the first ones, which are not loaded where the data have indices."""
    if count <= 0:
        return loader
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        return itertools.islice(loader, count, None)
    return rebuilt(loader, loader.dataset, list(itertools.islice(loader.batch_sampler, count, None)))
