# SPDX-License-Identifier: Apache-2.0
"""The memory that a call takes at its peak, measured from what PyTorch's allocators hand out."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler's library talks on standard error

ALLOCATION = "[memory]"  # what the profiler calls an allocation, or a release, of a negative size


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Bytes that a call holds at its peak above what was held before it: tensors, and temporaries inside operators.

    On CUDA devices the caching allocator counts; on a CPU the profiler's record of each allocation and release is added
    up. Weights and inputs, which were there before, don't count.

    Args:
        run: The call.
        device: Where it works, a CPU or a CUDA device.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run()
    held = peak = 0
    results = profiler.profiler.kineto_results
    for event in sorted(results.events(), key=lambda event: event.start_ns()):
        if event.name() == ALLOCATION:
            held += event.nbytes()
            peak = max(peak, held)
    return peak
