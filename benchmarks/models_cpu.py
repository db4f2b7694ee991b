# SPDX-License-Identifier: Apache-2.0
"""Latency of the zoo's small models on a CPU, each beside the model of timm whose cost is nearest.

    python benchmarks/models_cpu.py [--models PATTERN ...] [--batch 1 8] [--compile] [--rounds 5] [--again]

One model of each family: the first that has at most 37 million parameters; `--models` takes any. The two models of a
row run in turn, round by round, and `ratio` is our time for a multiply-accumulate over timm's. Rows are added to the
file as they are measured; one that is there, of the same machine, is not measured again without `--again`. On a machine
that does other work, `--shared` runs one thread and takes its processor time, which waiting does not lengthen.
Weights are random; softmaxes of such networks reach denormal numbers, which trained ones do not, so these are flushed.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import visionattn
from visionattn._files import replacing
from visionattn.benchmarking import Settings, build, find_models, machine
from visionattn.models import FAMILIES
from visionattn.models._macs import count_macs

OUTPUT = Path(__file__).parent / "results" / "models_cpu.json"
LARGEST = 37e6
SLOW = 2.0
REFERENCES = (
    "mobilenetv2_100",
    "regnety_008",
    "deit_tiny_patch16_224",
    "convnext_pico",
    "resnet18",
    "convnext_nano",
    "regnety_032",
    "resnet34",
    "resnet50",
    "convnext_tiny",
    "swin_tiny_patch4_window7_224",
    "deit_small_patch16_224",
    "resnet101",
    "convnext_small",
)
# Why models of a family take more than twice the time of timm's for a multiply-accumulate, as the profiler showed it.
REASONS: dict[str, str] = {}


def small_models() -> list[str]:
    """The first model of each family of classifiers that has at most `LARGEST` parameters."""
    chosen = []
    for family in FAMILIES:
        rows = (row for row in map(visionattn.info, visionattn.list_models()) if row.family == family)
        names = (row.architecture for row in rows if row.num_classes)
        chosen.append(next((name for name in names if parameters(name) <= LARGEST), None))
    return [name for name in chosen if name is not None]


def parameters(name: str) -> float:
    """Number of parameters: the published one where there is one, else counted on a model without storage."""
    published = visionattn.info(name).params_m
    if published is not None:
        return 1e6 * published
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in visionattn.create_model(name).parameters())


@functools.cache
def gmacs(name: str) -> float:
    """Multiply-accumulates of one image at the model's own size, in billions."""
    with torch.device("meta"):
        model, size = build(name)
    return count_macs(model, size) / 1e9


def nearest(cost: float) -> str:
    """The reference whose cost has the smallest ratio to this one."""
    return min(REFERENCES, key=lambda name: abs(math.log(gmacs(name) / cost)))


def measure(name: str, batch: int, compiled: bool, options: argparse.Namespace) -> dict[str, Any]:
    """Times of a model and of its reference in turn; what failed says so in `error`."""
    cost, reference = gmacs(name), nearest(gmacs(name))
    record: dict[str, Any] = {
        "model": name,
        "family": visionattn.info(name).family,
        "batch": batch,
        "compiled": compiled,
        "gmacs": round(cost, 3),
        "reference": reference,
        "reference_gmacs": round(gmacs(reference), 3),
        "load_average": round(os.getloadavg()[0], 1),
    }
    try:
        torch._dynamo.reset()
        with torch.inference_mode():
            steps = {}
            for key in (name, reference):
                steps[key], record[f"{'' if key == name else 'reference_'}first_s"] = _step(key, batch, compiled)
            clock = time.process_time if options.shared else time.perf_counter
            times = interleaved(steps, clock, options.rounds, options.seconds)
            ratio = _figures(record, times[name], times[reference]) / cost * gmacs(reference)
            record |= {"ratio": round(ratio, 2)}
            if ratio > SLOW:
                record |= {"reason": REASONS.get(record["family"]), "operators": operators(steps[name])}
    except Exception as error:  # whatever a model or its compilation fails with is what the record says
        record["error"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
    return record


def _step(name: str, batch: int, compiled: bool) -> tuple[functools.partial[Tensor], float]:
    """A forward pass, and the seconds of its first call, which compiles."""
    model, size = build(name)
    model.eval()
    run: Any = torch.compile(model, dynamic=False) if compiled else model
    step = functools.partial(run, torch.randn(batch, *size))
    start = time.perf_counter()
    step()
    return step, round(time.perf_counter() - start, 2)


def interleaved(
    steps: Mapping[str, Callable[[], object]], clock: Callable[[], float], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Milliseconds of every call, round by round, each in turn; after three rounds `seconds` end them."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    begin = time.perf_counter()
    for turn in range(rounds):
        if turn >= 3 and time.perf_counter() - begin > seconds:
            break
        for name, step in steps.items():
            start = clock()
            step()
            times[name].append(1e3 * (clock() - start))
    return times


def _figures(record: dict[str, Any], ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Puts medians and quartiles into a record; returns the median of the rounds' ratios, which noise moves least."""
    for prefix, times in (("", ours), ("reference_", theirs)):
        low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else 3 * list(times)
        record |= {f"{prefix}{key}": round(value, 2) for key, value in
                   (("ms", middle), ("q1_ms", low), ("q3_ms", high))}  # fmt: skip
    record["rounds"] = len(ours)
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def operators(step: functools.partial[Tensor], most: int = 4) -> dict[str, float]:
    """Share of a call's time in the operators that take most of it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return {event.key: round(event.self_cpu_time_total / total, 2) for event in events[:most]}


def read(path: Path, here: Mapping[str, Any]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Rows of a file by model, batch and mode; none where they are of another machine, whose figures don't compare."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text())
    if any(content["machine"].get(fact) != here[fact] for fact in ("device", "threads", "torch", "clock")):
        print(f"{path} is of another machine or another torch, and is written anew")
        return {}
    return {(row["model"], row["batch"], row["compiled"]): row for row in content["records"]}


def write(path: Path, here: dict[str, Any], records: Iterable[dict[str, Any]]) -> None:
    """Writes the file in one step; reasons are those of today."""
    rows = [{**row, "reason": REASONS.get(row["family"])} if "reason" in row else row for row in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"machine": here, "records": rows}, indent=1) + "\n")


def show(records: Sequence[dict[str, Any]]) -> None:
    """Prints a table, the slowest first."""
    table = Table(title="Models on a CPU (ratio: time for a multiply-accumulate over timm's; above 1 is slower)")
    for column in ("model", "batch", "mode", "ms", "GMACs", "timm's", "ms", "GMACs", "ratio", "reason"):
        table.add_column(column)
    for row in sorted(records, key=lambda row: -row.get("ratio", math.inf)):
        cells = [row.get("ms"), row["gmacs"], row["reference"], row.get("reference_ms"), row["reference_gmacs"]]
        reason = row.get("error") or (row["reason"] or "not known" if "reason" in row else "")
        mode = "compiled" if row["compiled"] else "eager"
        table.add_row(row["model"], str(row["batch"]), mode, *map(str, [*cells, row.get("ratio", "-")]), reason)
    Console(width=200).print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--models", nargs="+", metavar="PATTERN", help="these instead of one of each family")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8], help="images a step")
    parser.add_argument("--compile", action="store_true", help="compiled models too: a minute or two each")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each row")
    parser.add_argument(
        "--seconds", type=float, default=6.0, help="no round begins after this time, once there are three"
    )
    parser.add_argument("--again", action="store_true", help="measure rows that are in the file as well")
    parser.add_argument("--shared", action="store_true", help="one thread, and its processor time instead of the clock")
    parser.add_argument("--out", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    if options.shared:
        torch.set_num_threads(1)
    clock = "processor time, the machine was shared with other jobs" if options.shared else "wall clock"
    here = machine(Settings(device="cpu")) | {"clock": clock}
    rows = read(options.out, here)
    names = find_models(options.models) if options.models else small_models()
    for name in names:
        for compiled in [False, True] if options.compile else [False]:
            for batch in options.batch:
                if (name, batch, compiled) in rows and not options.again:
                    continue
                rows[name, batch, compiled] = measure(name, batch, compiled, options)
                write(options.out, here, rows.values())
    show([row for row in rows.values() if row["model"] in names])


if __name__ == "__main__":
    main()
