# SPDX-License-Identifier: Apache-2.0
"""How fast a run trains: time to the first batch, images a second, and the share of the GPU's arithmetic in use."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from visionattn.models._macs import count_macs
from visionattn.openmmlab.hooks import plain

THROUGHPUT_FILE = "throughput.jsonl"

# Dense tensor-core peaks in TFLOP/s by the vendor's data sheets (A100 2021, H100 and H200 SXM 2023, B200 2024):
# bfloat16 and float16, and float32 through TF32.
PEAKS = {"A100": (312.0, 156.0), "H100": (989.4, 494.7), "H200": (989.4, 494.7), "B200": (2250.0, 1125.0)}


def peak_tflops(device: str, half: bool) -> float | None:
    """Peak of a GPU by its name, in TFLOP/s; None of one that is not in the table.

    Args:
        device: As `torch.cuda.get_device_name` says it.
        half: Whether it calculates in bfloat16 or float16.
    """
    peaks = next((found for name, found in PEAKS.items() if name in device), None)
    if peaks is None or "PCIe" in device:  # whose clocks are lower
        return None
    return peaks[0 if half else 1]


def utilization(images_per_second: float, macs: float, peak: float) -> float:
    """Model FLOPs utilization in percent: of forward and backward passes, without what is recomputed.

    Args:
        images_per_second: Of one GPU.
        macs: Multiply-accumulates of one image's forward pass.
        peak: The GPU's peak in TFLOP/s.
    """
    return 100 * images_per_second * 3 * 2 * macs / (peak * 1e12)  # a backward pass is two forward passes


@HOOKS.register_module()
class ThroughputHook(Hook):
    """Writes `throughput.jsonl` into the work dir: a line each `interval` steps, and one an epoch's end.

    A line is `{"step", "images_per_second", "images_per_second_per_gpu", "data_share"}`, where `data_share` is the part
    of the time that training waits for data; with `mfu`, in percent, on GPUs whose peak is known (A100, H100, H200,
    B200). The first line has `seconds_to_first_batch`, from the run's beginning.

    Args:
        interval: Steps between two lines.
    """

    priority = "LOW"
    size: tuple[int, ...] | None = None  # of the images that come

    def __init__(self, interval: int = 100) -> None:
        if interval < 1:
            raise ValueError(f"interval={interval} must be at least 1")
        self.interval = interval
        self.macs: float | None = None
        self.started = time.perf_counter()
        self.records: list[dict[str, Any]] = []
        self._begin()

    def before_train(self, runner: Runner) -> None:
        """Begin a file, or go on with a resumed run's."""
        self.path = Path(runner.work_dir, THROUGHPUT_FILE)
        self.started, self.first = time.perf_counter(), True
        self._begin()
        if is_main_process() and runner.iter == 0:
            self.path.unlink(missing_ok=True)

    def before_train_epoch(self, runner: Runner) -> None:
        """Leave out the time between epochs: validation and checkpoints."""
        self._begin()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Count what the batch took to come."""
        now = time.perf_counter()
        if self.first:
            self.first = False
            self._write({"step": runner.iter, "seconds_to_first_batch": now - self.started})
            self._begin()  # workers start, kernels are chosen
        else:
            self.waited += now - self.last

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Count the batch."""
        inputs = data_batch.get("inputs") if isinstance(data_batch, dict) else None
        if inputs is not None:
            self.images += len(inputs)
            if isinstance(inputs, Tensor):
                self.size = tuple(inputs.shape[1:])
        self.last = time.perf_counter()
        if (runner.iter + 1) % self.interval == 0:
            self._flush(runner, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """Write what is left of the epoch."""
        self._flush(runner, runner.iter)

    def _begin(self) -> None:
        self.begin = self.last = time.perf_counter()
        self.images: int = 0
        self.waited: float = 0.0
        self.size = None

    def _flush(self, runner: Runner, step: int) -> None:
        if not self.images:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self.begin
        rate = self.images / seconds
        record = {
            "step": step,
            "images_per_second": rate * get_world_size(),
            "images_per_second_per_gpu": rate,
            "data_share": self.waited / seconds,
        }
        mfu = self._mfu(runner, rate)
        if mfu is not None:
            record["mfu"] = mfu
        self._write(record)
        runner.visualizer.add_scalars({f"speed/{k}": v for k, v in record.items() if k != "step"}, step=step)
        self._begin()

    def _mfu(self, runner: Runner, rate: float) -> float | None:
        if self.size is None or not torch.cuda.is_available():
            return None
        wrapper: Any = runner.optim_wrapper
        half = type(wrapper).__name__ in ("AmpOptimWrapper", "AutocastOptimWrapper")
        peak = peak_tflops(torch.cuda.get_device_name(), half)
        network = getattr(getattr(runner.model, "module", runner.model), "model", None)
        if peak is None or not isinstance(network, nn.Module):
            return None
        if self.macs is None:
            self.macs = _macs(network, self.size)
        return utilization(rate, self.macs, peak) if self.macs else None

    def _write(self, record: dict[str, Any]) -> None:
        record = {key: plain(value) for key, value in record.items()}
        self.records.append(record)
        if is_main_process():
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")


def _macs(network: nn.Module, size: tuple[int, ...]) -> float:
    """Multiply-accumulates of one image; 0 of a model that does not run without data."""
    try:
        return float(count_macs(network, (size[0], size[1], size[2])))
    except (AssertionError, AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return 0.0
