# SPDX-License-Identifier: Apache-2.0
"""Times of calls on a device, taken in turns, so that the machine's noise hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)
Run = Callable[[], object]
LEAST_ROUNDS = 3
SWEEP_BYTES = 2**28  # above every GPU's second-level cache


def elapsed(run: Run, device: torch.device) -> float:
    """Milliseconds of one call: between two events on a GPU, by the clock elsewhere."""
    if device.type != "cuda":
        begin = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - begin)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def interleaved(
    runs: Mapping[Key, Run], device: torch.device, rounds: int, before: Run | None = None, seconds: float = float("inf")
) -> dict[Key, list[float]]:
    """Milliseconds of every call, round by round, each in turn; the first round is a warm-up and not kept.

    Args:
        runs: The calls.
        device: Where they work.
        rounds: Rounds that are kept.
        before: Is called before each, outside of its time, on the same stream.
        seconds: No new round begins after this time, once there are three.
    """
    times: dict[Key, list[float]] = {key: [] for key in runs}
    begin = time.perf_counter()
    for turn in range(rounds + 1):
        if turn > LEAST_ROUNDS and time.perf_counter() - begin > seconds:
            break
        for key, run in runs.items():
            if before is not None:
                before()
            took = elapsed(run, device)
            if turn:
                times[key].append(took)
    return times


def cache_sweeper(device: torch.device) -> Run | None:
    """A call that empties a GPU's cache, and keeps it busy while the host prepares the launch that follows."""
    if device.type != "cuda":
        return None
    buffer = torch.empty(SWEEP_BYTES, dtype=torch.int8, device=device)

    def sweep() -> None:
        for _ in range(4):
            buffer.zero_()

    return sweep
