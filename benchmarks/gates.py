# SPDX-License-Identifier: Apache-2.0
"""What the kernels are held to, and whether the figures of `benchmarks/kernels.py` keep it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

Record = dict[str, Any]


class Gate(NamedTuple):
    """One promise for one problem: `found` must be at least `wanted`, or at most where `most`."""

    name: str
    problem: str
    wanted: float
    found: float
    most: bool = False

    @property
    def kept(self) -> bool:
        """Whether the promise is kept."""
        return self.found <= self.wanted if self.most else self.found >= self.wanted


# Gate of a problem: how many times faster than which contender.
FASTER = {
    "flex": (("flex", 2.0),),
    "flex_even": (("flex", 1.0),),
    "dense": (("dense", 3.0),),
    "unfused": (("unfused", 3.0), ("unfused-sdpa", 3.0)),
}
BACKWARD = 3.0  # times the forward
SPARSE = 0.8  # of the speed-up over dense attention that the share of pairs promises
SWIN_BASE = "swin_base_patch4_window12_384"
MODELS = (  # name, wanted, (model, accelerated, training) and what it is compared with
    ("training step", 1.3, ("va_swin_tiny", False, True), ("swin_tiny_patch4_window7_224", False, True)),
    ("inference", 0.9, ("va_nat_tiny", False, False), ("va_swin_tiny", False, False)),
    ("accelerate()", 1.3, (SWIN_BASE, True, False), (SWIN_BASE, False, False)),
)  # fmt: skip


def check(records: Sequence[Record], models: Sequence[Record]) -> list[Gate]:
    """Every promise that can be checked with the figures at hand."""
    times = {(r["list"], r["problem"], r["dtype"], r["mode"], r["contender"]): r["ms"] for r in records if "ms" in r}
    ours = [r for r in records if r["contender"] == "visionattn" and "ms" in r]
    return [gate for r in ours for gate in _of_problem(r, times)] + list(_of_models(models))


def _of_problem(r: Record, times: dict[Any, float]) -> Iterator[Gate]:
    place = (r["list"], r["problem"], r["dtype"])
    for gate in r["gates"]:
        for other, wanted in FASTER.get(gate, ()):
            theirs = times.get((*place, r["mode"], other))
            if theirs is not None:
                yield Gate(f"over {other}, {r['mode']}", r["problem"], wanted, theirs / r["ms"])
        if gate == "backward" and r["mode"] != "forward" and (*place, "forward", "visionattn") in times:
            forward = times[(*place, "forward", "visionattn")]
            yield Gate("backward over forward", r["problem"], BACKWARD, (r["ms"] - forward) / forward, most=True)
        if gate == "sparse" and r["mode"] == "forward" and (*place, "forward", "dense") in times:
            gained = times[(*place, "forward", "dense")] / r["ms"]
            yield Gate("share of the promised speed-up", r["problem"], SPARSE, gained * r["density"])


def _of_models(models: Sequence[Record]) -> Iterator[Gate]:
    rates = {(m["model"], m["accelerated"], m["train"]): m["images_per_second"] for m in models}
    for name, wanted, mine, other in MODELS:
        if rates.get(mine) and rates.get(other):
            problem = f"{mine[0]} over {other[0]}"
            yield Gate(f"images/s, {name}", problem, wanted, rates[mine] / rates[other])


def show_gates(gates: Sequence[Gate]) -> None:
    """Print them as a table."""
    table = Table("promise", "problem", "wanted", "measured", "", title="promises")
    for gate in gates:
        wanted = f"{'≤' if gate.most else '≥'} {gate.wanted:g}"
        table.add_row(gate.name, gate.problem, wanted, f"{gate.found:.2f}", "pass" if gate.kept else "FAIL")
    if gates:
        Console(width=150).print(table)
        print(f"{sum(gate.kept for gate in gates)} of {len(gates)} promises are kept")
