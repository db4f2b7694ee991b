# SPDX-License-Identifier: Apache-2.0
"""Hooks of a training run: seeds, metrics file and curves, progress bar, checkpoints."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import get_rank, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner, set_random_seed
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from visionattn._files import replacing
from visionattn.viz import draw_curves

METRICS_FILE = "metrics.jsonl"
CURVES_FILE = "curves.png"


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seeds every random generator from (seed, epoch, rank), so that a resumed run goes on as if never stopped."""

    priority = "VERY_HIGH"

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed the epoch that begins, its augmentations included."""
        set_random_seed(int(np.random.SeedSequence((runner.seed, runner.epoch, get_rank())).generate_state(1)[0]))
        dataset = runner.train_dataloader.dataset
        if hasattr(dataset, "set_random_state"):
            dataset.set_random_state(runner.seed, runner.epoch)


@HOOKS.register_module()
class MetricsHook(Hook):
    """Writes `metrics.jsonl` and `curves.png` into the work dir.

    A line is `{"mode": "train", "epoch", "step", "lr", "loss", "top1"}`, the mean over the last `interval` steps, or
    `{"mode": "val", "epoch", "step", …}` with every validation metric. A resumed run drops the lines after its
    checkpoint and goes on.

    Args:
        interval: Steps between two lines of training figures.
        draw_every: Least time in seconds between two drawings of the curves; they are always drawn at the end.
    """

    priority = "BELOW_NORMAL"

    def __init__(self, interval: int = 10, draw_every: float = 30.0) -> None:
        if interval < 1:
            raise ValueError(f"interval={interval} must be at least 1")
        self.interval = interval
        self.draw_every = draw_every
        self.records: list[dict[str, Any]] = []
        self.pending: list[dict[str, float]] = []
        self.drawn = 0.0

    def before_train(self, runner: Runner) -> None:
        """Keep the lines up to the step that training starts from."""
        self.path = Path(runner.work_dir, METRICS_FILE)
        old = read_records(self.path) if runner.iter > 0 else []
        self.records = [record for record in old if record["step"] <= runner.iter]
        self.drawn = time.monotonic()
        if is_main_process():
            with replacing(self.path) as temporary:
                temporary.write_text("".join(json.dumps(record) + "\n" for record in self.records))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Collect a step's figures, and stop where the loss is no number any more."""
        values = as_numbers(outputs)
        if not math.isfinite(values.get("loss", 0.0)):
            raise FloatingPointError(
                f"the loss is {values['loss']} at step {runner.iter + 1}; lower optim_wrapper.optimizer.lr or set "
                "optim_wrapper.clip_grad.max_norm"
            )
        self.pending.append(values)
        if (runner.iter + 1) % self.interval == 0:
            self._flush(runner, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """Write what is left of the epoch."""
        self._flush(runner, runner.iter)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the validation metrics, and draw the curves now and then."""
        if not hasattr(self, "path") or metrics is None:  # validation outside a training run
            return
        self._write(runner, {"mode": "val", "epoch": runner.epoch, "step": runner.iter, **metrics})
        if time.monotonic() - self.drawn > self.draw_every:
            self._draw(runner)

    def after_train(self, runner: Runner) -> None:
        """Draw the curves of the whole run."""
        self._draw(runner)

    def _flush(self, runner: Runner, step: int) -> None:
        if not self.pending:
            return
        means = {name: sum(p[name] for p in self.pending) / len(self.pending) for name in self.pending[0]}
        lr = runner.optim_wrapper.get_lr()["lr"][0]
        self.pending.clear()
        self._write(runner, {"mode": "train", "epoch": runner.epoch + 1, "step": step, "lr": lr, **means})

    def _write(self, runner: Runner, record: dict[str, Any]) -> None:
        record = {key: round(value, 8) if isinstance(value, float) else value for key, value in record.items()}
        self.records.append(record)
        if is_main_process():
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        scalars = {f"{record['mode']}/{key}": v for key, v in record.items() if key not in ("mode", "epoch", "step")}
        runner.visualizer.add_scalars(scalars, step=record["step"])

    def _draw(self, runner: Runner) -> None:
        self.drawn = time.monotonic()
        if is_main_process() and self.records:
            draw_curves(self.records, Path(runner.work_dir, CURVES_FILE))


def as_numbers(outputs: dict | None) -> dict[str, float]:
    """Figures of a training step as plain numbers."""
    return {name: float(value.detach()) for name, value in (outputs or {}).items()}


def read_records(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics file; a last line that was cut off is left out."""
    records = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


@HOOKS.register_module()
class ProgressHook(Hook):
    """Progress bar with losses and remaining time on a terminal, and one line an epoch everywhere.

    Args:
        monitor: Validation metric that an epoch's line shows, in percent.
    """

    priority = "LOW"

    def __init__(self, monitor: str = "top1") -> None:
        self.monitor = monitor
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.loss = float("nan")

    def before_train(self, runner: Runner) -> None:
        """Open the bar."""
        if not is_main_process():
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "eta")
        self.bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task("training", total=runner.max_iters, completed=runner.iter)
        self.started, self.first = time.monotonic(), runner.iter
        if self.bar.console.is_terminal:
            self.bar.start()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Advance the bar."""
        loss = as_numbers(outputs).get("loss", float("nan"))
        self.loss = loss if batch_idx == 0 else 0.9 * self.loss + 0.1 * loss
        if self.bar is not None and self.task is not None:
            description = f"epoch {runner.epoch + 1}/{runner.max_epochs} loss {self.loss:.3f}"
            self.bar.update(self.task, advance=1, description=description)

    def after_train_epoch(self, runner: Runner) -> None:
        """Print the epoch's line where no validation follows."""
        if not validates(runner):
            self._line(runner, runner.epoch + 1, "")

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Print the epoch's line."""
        value = (metrics or {}).get(self.monitor)
        self._line(runner, runner.epoch if self.bar is not None else 0, "" if value is None else f"{value:6.2f} %")

    def after_train(self, runner: Runner) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _line(self, runner: Runner, epoch: int, result: str) -> None:
        if self.bar is None:
            return
        spent = (time.monotonic() - self.started) / max(runner.iter - self.first, 1)
        left = time.strftime("%H:%M:%S", time.gmtime(spent * (runner.max_iters - runner.iter)))
        validation = f"   val {self.monitor} {result}" if result else ""
        self.bar.console.print(
            f"epoch {epoch:>3}/{runner.max_epochs}   loss {self.loss:.4f}{validation}   eta {left}", highlight=False
        )


@HOOKS.register_module()
class AtomicCheckpointHook(Hook):
    """Keeps `last.pth`, for resuming, and `best.pth`; each is replaced in one step and never missing in between.

    Checkpoints hold tensors and plain values only. An epoch's is written after its validation and records its metrics.

    Args:
        monitor: Validation metric that decides on the best; higher is better.
    """

    priority = "VERY_LOW"

    def __init__(self, monitor: str = "top1") -> None:
        self.monitor = monitor
        self.training = False

    def before_train(self, runner: Runner) -> None:
        """Note that validations from here on belong to training."""
        self.training = True

    def after_train(self, runner: Runner) -> None:
        """Training is over."""
        self.training = False

    def after_train_epoch(self, runner: Runner) -> None:
        """Save an epoch that is not validated."""
        if not validates(runner):
            self._save(runner, "last.pth", runner.epoch + 1, {})

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Save a validated epoch, and once more where it is the best so far."""
        if not self.training:
            return
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        value = metrics.get(self.monitor, float("nan"))
        best = runner.message_hub.runtime_info.get("best")
        improved = not math.isnan(value) and (best is None or value > best[self.monitor])
        if improved:
            runner.message_hub.update_info("best", {"epoch": runner.epoch, **metrics})
            self._save(runner, "best.pth", runner.epoch, metrics)
        self._save(runner, "last.pth", runner.epoch, metrics)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the best epoch's record for a resumed run."""
        best = runner.message_hub.runtime_info.get("best")
        if best is not None:
            checkpoint["message_hub"]["runtime_info"]["best"] = dict(best)

    def _save(self, runner: Runner, filename: str, epoch: int, metrics: dict[str, float]) -> None:
        meta = {"epoch": epoch, "iter": runner.iter, "metrics": metrics}
        runner.save_checkpoint(runner.work_dir, filename, meta=meta)


def validates(runner: Runner) -> bool:
    """Whether a validation follows the training epoch that is ending."""
    if runner.val_loop is None:
        return False
    loop, epoch = runner.train_loop, runner.epoch + 1
    return epoch >= loop.val_begin and (epoch % loop.val_interval == 0 or epoch == loop.max_epochs)
