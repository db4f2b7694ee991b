# SPDX-License-Identifier: Apache-2.0
"""Neighborhood attention on a CPU against the ways to do without it: time forward and backward, and memory.

    python benchmarks/local_attention_cpu.py [--rounds 15] [--out benchmarks/results/NAME.json]

The alternatives: `gather` makes one copy of K and V for each query, `dense` is PyTorch's fused attention over the whole
map (another, easier function: no window, no mask), `flex` is FlexAttention compiled with the neighborhood as mask
(forward only: it has no backward on a CPU). Candidates run in turn, round by round; every ratio is theirs over ours.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from visionattn.kernels import explain, neighborhood_attention

CASES = [
    # batch, side of the map, heads, kernel; 56x56, 7x7, head dim 32 is the first stage of NAT at 224
    dict(batch=1, side=56, heads=2, kernel=7),
    dict(batch=8, side=56, heads=2, kernel=7),
    dict(batch=8, side=28, heads=4, kernel=7),
    dict(batch=8, side=14, heads=8, kernel=7),
    dict(batch=1, side=96, heads=6, kernel=11),
]
HEAD_DIM = 32


def windows(side: int, kernel: int) -> Tensor:
    """Flat key positions of every query, (pixels, kernel^2)."""
    first = (torch.arange(side) - kernel // 2).clamp(0, side - kernel)
    line = first[:, None] + torch.arange(kernel)
    return (line[:, None, :, None] * side + line[None, :, None, :]).reshape(side * side, -1)


def heads_first(x: Tensor) -> Tensor:
    return x.flatten(1, 2).transpose(1, 2)  # (B, heads, pixels, D)


def back(x: Tensor, side: int) -> Tensor:
    return x.transpose(1, 2).unflatten(1, (side, side))


# One of several ways to write it; einsum and unfold were slower.
def gather(q: Tensor, k: Tensor, v: Tensor, index: Tensor) -> Tensor:
    q, k, v = (heads_first(x) for x in (q, k, v))
    near_k, near_v = k[:, :, index], v[:, :, index]  # (B, heads, pixels, kernel^2, D): the copies
    weights = (near_k @ (q * HEAD_DIM**-0.5)[..., None]).softmax(-2)
    return (weights.transpose(-1, -2) @ near_v).squeeze(-2)


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*(heads_first(x) for x in (q, k, v)))


@functools.lru_cache(maxsize=1)
def flex_candidate(side: int, kernel: int, batch: int) -> Callable[..., Tensor]:
    def near(i: Tensor, j: Tensor) -> Tensor:
        first = (i - kernel // 2).clamp(0, side - kernel)
        return (j >= first) & (j < first + kernel)

    def mask(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return near(i // side, j // side) & near(i % side, j % side)

    block_mask = create_block_mask(mask, None, None, side * side, side * side, device="cpu")
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(*(heads_first(x) for x in (q, k, v)), block_mask=block_mask)


def candidates(case: dict[str, int]) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    side, kernel = case["side"], case["kernel"]
    index = windows(side, kernel)
    return {
        "visionattn": lambda q, k, v: neighborhood_attention(q, k, v, kernel),
        "gather": lambda q, k, v: back(gather(q, k, v, index), side),
        "dense": lambda q, k, v: back(dense(q, k, v), side),
        "flex": lambda q, k, v: back(flex_candidate(side, kernel, case["batch"])(q, k, v), side),
    }


def training_step(f: Callable[..., Tensor], qkv: Tensor, grad: Tensor) -> Tensor:
    leaf = qkv.detach().requires_grad_()
    f(*leaf.unbind(3)).backward(grad)
    assert leaf.grad is not None
    return leaf.grad


def peak_bytes(run: Callable[[], Any]) -> int:
    """Most memory allocated at once during the call, above what there was before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = run()
    del kept
    now = peak = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def refusal(name: str, run: Callable[[], Tensor], expected: Tensor | None) -> str | None:
    """Why the candidate is left out: it can't run here, or computes something else. Also its warm-up."""
    try:
        out = run()
    except Exception as error:  # whatever a candidate fails with is what the record says
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
    if expected is not None and name != "dense" and (out - expected).abs().max() > 1e-4 * expected.abs().max():
        return "disagrees with the gather form"
    return None


def interleaved(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) * 1e3)
    return times


def measure(case: dict[str, int], rounds: int) -> list[dict[str, Any]]:
    qkv = torch.randn(case["batch"], case["side"], case["side"], 3, case["heads"], HEAD_DIM)
    grad = torch.randn(case["batch"], case["side"], case["side"], case["heads"], HEAD_DIM)
    k_and_v = 2 * qkv.nbytes / 3
    records = []
    for mode in ("forward", "forward+backward"):
        runs: dict[str, Callable[[], Tensor]] = {}
        reasons: dict[str, str] = {}
        todo = {
            name: (lambda f=f: f(*qkv.unbind(3))) if mode == "forward" else (lambda f=f: training_step(f, qkv, grad))
            for name, f in candidates(case).items()
        }
        with torch.no_grad() if mode == "forward" else torch.enable_grad():
            expected = todo["gather"]()
            for name, run in todo.items():
                reason = refusal(name, run, expected)
                if reason is None:
                    runs[name] = run
                else:
                    reasons[name] = reason
            times = interleaved(runs, rounds)
            ours = statistics.median(times["visionattn"])
            for name in todo:
                record: dict[str, Any] = dict(case=case, head_dim=HEAD_DIM, mode=mode, candidate=name)
                if name in reasons:
                    record["left_out"] = reasons[name]
                else:
                    low, middle, high = (statistics.quantiles(times[name], n=10)[i] for i in (1, 4, 7))
                    extra = peak_bytes(runs[name])
                    record |= dict(median_ms=middle, p20_ms=low, p80_ms=high, ratio=middle / ours,
                                   peak_mib=extra / 2**20, peak_over_k_and_v=extra / k_and_v)  # fmt: skip
                records.append(record)
    return records


def machine() -> dict[str, Any]:
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.processor())  # fmt: skip
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return dict(device=cpu, threads=torch.get_num_threads(), torch=torch.__version__, python=platform.python_version(),
                commit=commit.stdout.strip(), date=datetime.date.today().isoformat())  # fmt: skip


def show(records: list[dict[str, Any]]) -> None:
    table = Table(title="Neighborhood attention on a CPU (ratio: time over visionattn's; above 1 is slower)")
    for column in ("batch x map x heads, kernel", "mode", "candidate", "median ms", "ratio", "extra memory / (k + v)"):
        table.add_column(column)
    for r in records:
        c = r["case"]
        name = f"{c['batch']} x {c['side']}x{c['side']} x {c['heads']}, {c['kernel']}x{c['kernel']}"
        if "left_out" in r:
            table.add_row(name, r["mode"], r["candidate"], "-", "-", r["left_out"])
        else:
            table.add_row(name, r["mode"], r["candidate"], f"{r['median_ms']:.2f}", f"{r['ratio']:.2f}",
                          f"{r['peak_over_k_and_v']:.1f}")  # fmt: skip
    Console(width=150).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds of each case")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "local_attention_cpu.json")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    q = torch.randn(1, 8, 8, 2, HEAD_DIM)
    backend = explain(neighborhood_attention, q, q, q, 7)
    records = [record for case in CASES for record in measure(case, arguments.rounds)]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = arguments.out.with_suffix(".tmp")
    temporary.write_text(json.dumps(dict(machine=machine(), backend=backend, records=records), indent=1) + "\n")
    temporary.replace(arguments.out)
    show(records)


if __name__ == "__main__":
    main()
