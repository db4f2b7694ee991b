# SPDX-License-Identifier: Apache-2.0
"""Hooks of a training run: seeds, metrics file and curves, progress bar, checkpoints."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import get_rank, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner, set_random_seed
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
from visionattn.openmmlab.loading import SeededDataset
from visionattn.viz import draw_curves

# Validation metrics that decide which checkpoint is the best; those in percent.
MONITORS = ("top1", "coco/bbox_mAP", "coco/segm_mAP", "mIoU")
PERCENTAGES = ("top", "mIoU", "aAcc", "mAcc", "IoU", "Acc")

METRICS_FILE = "metrics.jsonl"
CURVES_FILE = "curves.png"


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seeds every random generator from (seed, epoch, rank), so that a resumed run goes on as if never stopped.

    In a run by steps, which has no epochs, in detection and segmentation, and where checkpoints are written within
    epochs, every step is seeded from (seed, step, rank), so that what loaders draw does not count.
    """

    priority = "VERY_HIGH"

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed the epoch that begins, its augmentations included."""
        _seed_everything(runner.seed, runner.epoch)
        dataset = runner.train_dataloader.dataset
        if hasattr(dataset, "set_random_state"):
            dataset.set_random_state(runner.seed, runner.epoch)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the step that begins, where its data are seeded apart."""
        apart = isinstance(runner.train_dataloader.dataset, SeededDataset)
        if by_steps(runner) or apart or saves_within_epochs(runner):
            _seed_everything(runner.seed, runner.iter)


def _seed_everything(seed: int, count: int) -> None:
    set_random_seed(int(np.random.SeedSequence((seed, count, get_rank())).generate_state(1)[0]))


def saves_within_epochs(runner: Runner) -> bool:
    """Whether a run by epochs may be resumed in the middle of one."""
    return any(isinstance(hook, AtomicCheckpointHook) and hook.interval is not None for hook in runner.hooks)


def by_steps(runner: Runner) -> bool:
    """Whether training is counted in steps, not in epochs."""
    return isinstance(runner.train_loop, IterBasedTrainLoop)


@HOOKS.register_module()
class MetricsHook(Hook):
    """Writes `metrics.jsonl` and `curves.png` into the work dir.

    A line is `{"mode": "train", "epoch", "step", "lr", "loss", …}`, the mean over the last `interval` steps, or
    `{"mode": "val", "epoch", "step", …}` with every validation metric. A resumed run drops the lines after its
    checkpoint and goes on. A loss that is no number ends the run.

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
            files = image_files(data_batch)
            raise FloatingPointError(
                f"the loss is {values['loss']} at step {runner.iter + 1}; lower optim_wrapper.optimizer.lr or set "
                "optim_wrapper.clip_grad.max_norm" + (f"; the batch's images: {', '.join(files)}" if files else "")
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
        # A loss may be absent from some steps, such as that of a head which had nothing to learn from.
        names = dict.fromkeys(name for values in self.pending for name in values)
        found = {name: [values[name] for values in self.pending if name in values] for name in names}
        means = {name: sum(values) / len(values) for name, values in found.items()}
        lr = runner.optim_wrapper.get_lr()["lr"][0]
        self.pending.clear()
        self._write(runner, {"mode": "train", "epoch": runner.epoch + 1, "step": step, "lr": lr, **means})

    def _write(self, runner: Runner, record: dict[str, Any]) -> None:
        record = {key: plain(value) for key, value in record.items()}
        self.records.append(record)
        if is_main_process():
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        scalars = {
            f"{record['mode']}/{key}": value
            for key, value in record.items()
            if key not in ("mode", "epoch", "step") and isinstance(value, (int, float))
        }
        runner.visualizer.add_scalars(scalars, step=record["step"])

    def _draw(self, runner: Runner) -> None:
        self.drawn = time.monotonic()
        if is_main_process() and self.records:
            draw_curves(self.records, Path(runner.work_dir, CURVES_FILE))


def plain(value: Any) -> Any:
    """A figure as JSON knows it: numbers with 8 decimals, None for what is no number."""
    if not isinstance(value, (float, np.number)):
        return value
    number = float(str(value))  # the shortest decimal: 24.26, not float32's 24.260000228881836
    return round(number, 8) if math.isfinite(number) else None


def image_files(batch: Any) -> list[str]:
    """Image files of a batch of mmdet or mmsegmentation; none of other batches."""
    samples = batch.get("data_samples", ()) if isinstance(batch, dict) else ()
    return [str(sample.img_path) for sample in samples if hasattr(sample, "img_path")]


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

    A run by steps has a line at each validation.

    Args:
        monitor: Validation metric that a line shows; None for the first of `MONITORS` that there is.
    """

    priority = "LOW"

    def __init__(self, monitor: str | None = None) -> None:
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
            place = "step" if by_steps(runner) else f"epoch {runner.epoch + 1}/{runner.max_epochs}"
            self.bar.update(self.task, advance=1, description=f"{place} loss {self.loss:.3f}")

    def after_train_epoch(self, runner: Runner) -> None:
        """Print the epoch's line where no validation follows."""
        if not by_steps(runner) and not validates(runner):
            self._line(runner, f"epoch {runner.epoch + 1:>3}/{runner.max_epochs}", "")

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Print the epoch's line, or the step's."""
        if self.bar is None:  # validation outside a training run
            return
        name = self.monitor or monitored(metrics or {}) or ""
        value = (metrics or {}).get(name)
        steps, place = runner.iter, f"epoch {runner.epoch:>3}/{runner.max_epochs}"
        if by_steps(runner):
            place = f"step {steps:>{len(str(runner.max_iters))}}/{runner.max_iters}"
        self._line(runner, place, "" if value is None else f"{name} {shown(name, value)}")

    def after_train(self, runner: Runner) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _line(self, runner: Runner, place: str, result: str) -> None:
        if self.bar is None:
            return
        spent = (time.monotonic() - self.started) / max(runner.iter - self.first, 1)
        left = time.strftime("%H:%M:%S", time.gmtime(spent * (runner.max_iters - runner.iter)))
        validation = f"   val {result}" if result else ""
        self.bar.console.print(f"{place}   loss {self.loss:.4f}{validation}   eta {left}", highlight=False)


def monitored(metrics: Mapping[str, Any]) -> str | None:
    """Name of the metric that decides: the first of `MONITORS` that there is."""
    return next((name for name in MONITORS if name in metrics), None)


def shown(name: str, value: float) -> str:
    """A metric for people to read: percentages with their sign, others as they are."""
    return f"{value:6.2f} %" if name.startswith(PERCENTAGES) else f"{value:.4f}"


@HOOKS.register_module()
class AtomicCheckpointHook(Hook):
    """Keeps `last.pth`, for resuming, and `best.pth`; each is replaced in one step and never missing in between.

    Checkpoints hold tensors and plain values only. One is written after each validation, with its metrics in it, and
    after an epoch that is not validated.

    Args:
        monitor: Validation metric that decides on the best, higher is better; None for the first of `MONITORS`.
        interval: Steps between two checkpoints beside those after validations and epochs; None for none.
    """

    priority = "VERY_LOW"

    def __init__(self, monitor: str | None = None, interval: int | None = None) -> None:
        if interval is not None and interval < 1:
            raise ValueError(f"interval={interval} must be at least 1, or None")
        self.monitor = monitor
        self.interval = interval
        self.training = False

    def before_train(self, runner: Runner) -> None:
        """Note that validations from here on belong to training."""
        self.training = True

    def after_train(self, runner: Runner) -> None:
        """Training is over."""
        self.training = False

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Save a step that is due, unless its validation follows."""
        step = runner.iter + 1
        due = self.interval is not None and step % self.interval == 0
        if by_steps(runner):
            if (due or step == runner.max_iters) and not runner.train_loop.validates_after(step):
                self._save(runner, "last.pth", 0, {}, step)
        elif due and batch_idx + 1 < len(runner.train_dataloader):  # the epoch's end saves by itself
            self._save(runner, "last.pth", runner.epoch, {}, step)

    def after_train_epoch(self, runner: Runner) -> None:
        """Save an epoch that is not validated."""
        if not by_steps(runner) and not validates(runner):
            self._save(runner, "last.pth", runner.epoch + 1, {})

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Save a validated epoch or step, and once more where it is the best so far."""
        if not self.training:
            return
        metrics = {name: plain(value) for name, value in (metrics or {}).items() if is_number(value)}
        name = self.monitor or monitored(metrics)
        value = metrics.get(name) if name else None
        best = runner.message_hub.runtime_info.get("best")
        improved = value is not None and (best is None or value > best[name])
        if improved:
            place = {"step": runner.iter} if by_steps(runner) else {"epoch": runner.epoch}
            runner.message_hub.update_info("best", {**place, **metrics})
            self._save(runner, "best.pth", runner.epoch, metrics)
        self._save(runner, "last.pth", runner.epoch, metrics)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the best epoch's record for a resumed run."""
        best = runner.message_hub.runtime_info.get("best")
        if best is not None:
            checkpoint["message_hub"]["runtime_info"]["best"] = dict(best)

    def _save(
        self, runner: Runner, filename: str, epoch: int, metrics: dict[str, Any], step: int | None = None
    ) -> None:
        meta = {"epoch": epoch, "iter": runner.iter if step is None else step, "metrics": metrics}
        runner.save_checkpoint(runner.work_dir, filename, meta={**meta, "by_steps": by_steps(runner)})


def is_number(value: Any) -> bool:
    """Whether a metric is a number, NumPy's included."""
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def validates(runner: Runner) -> bool:
    """Whether a validation follows the training epoch that is ending."""
    if runner.val_loop is None:
        return False
    loop, epoch = runner.train_loop, runner.epoch + 1
    return epoch >= loop.val_begin and (epoch % loop.val_interval == 0 or epoch == loop.max_epochs)
