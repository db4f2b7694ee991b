# SPDX-License-Identifier: Apache-2.0
"""Local attention on a GPU against the ways to do without our kernels: time forward and backward, and memory.

    python benchmarks/kernels.py --quick                       # a subset, in minutes
    python benchmarks/kernels.py --list swin nat               # each list takes less than eight minutes
    python benchmarks/kernels.py --plot                        # draw what was measured before
    python benchmarks/kernels.py --device cpu --smoke          # tiny shapes through every contender

Figures go to benchmarks/results/DEVICE/kernels.json, list by list; docs/benchmarks.md says how to read them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from contenders import CONTENDERS, Attention, LeftOut, exact_rows
from gates import check, show_gates
from problems import LISTS, SMOKE, Problem, chosen
from rich.console import Console
from rich.table import Table
from torch import Tensor

from visionattn import benchmarking
from visionattn._files import replacing
from visionattn._timing import interleaved
from visionattn.kernels import explain, local_attention, use_backend

RESULTS = Path(__file__).parent / "results"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Relative error (2-norm) that rounding of operands and results explains; a GPU's float32 products may be TF32.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 5e-3, torch.float32: 2e-3}
ON_CPU = 1e-5
CHECKED = 48  # queries of each case that are computed from the definition, in float64
CHECKED_PAIRS = 2**27  # query-key pairs of one head and image up to which gradients are checked
MODES = ("forward", "forward+backward")
LAUNCH_BOUND = 1.25  # eager time over that of a replayed graph
MODELS = (  # names, images, size, training
    (("va_swin_tiny", "swin_tiny_patch4_window7_224"), 128, True),
    (("va_nat_tiny", "va_swin_tiny"), 128, False),
    (("swin_base_patch4_window12_384",), 32, False),
)


@dataclass
class Options:
    """How the problems are measured."""

    device: torch.device
    dtype: torch.dtype
    rounds: int
    seconds: float


# --- inputs and checks ----------------------------------------------------------------------------------------------


@dataclass
class Inputs:
    """A packed projection, a bias table and the gradient of the output."""

    qkv: Tensor
    bias: Tensor | None
    grad: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        return [self.qkv] if self.bias is None else [self.qkv, self.bias]


def random_inputs(problem: Problem, options: Options) -> list[Inputs]:
    """Sets of inputs that together exceed the device's cache twice over."""
    count = 1
    if options.device.type == "cuda":
        cache = torch.cuda.get_device_properties(options.device).L2_cache_size
        count = min(max(2 * cache // problem.ideal_bytes(options.dtype.itemsize, False), 1), 16)
    shape = (problem.batch, *problem.size, 3, problem.heads, problem.head_dim)
    found = []
    for _ in range(count):
        qkv, *_ = draws = [torch.randn(shape, device=options.device, dtype=options.dtype)]
        grad = torch.randn(shape[:-3] + shape[-2:], device=options.device, dtype=options.dtype)
        bias = None
        if problem.bias:
            bias = torch.randn(problem.heads, *(2 * a.kernel_size - 1 for a in problem.axes), device=options.device)
            draws.append(bias)
        for leaf in draws:
            leaf.requires_grad_()
        found.append(Inputs(qkv, bias, grad))
    return found


def forward(attention: Attention, x: Inputs) -> Tensor:
    bias = None if x.bias is None else x.bias.detach()
    with torch.no_grad():
        return attention(*x.qkv.detach().unbind(-3), bias)


def training(attention: Attention, x: Inputs) -> tuple[Tensor, ...]:
    out = attention(*x.qkv.unbind(-3), x.bias)
    return torch.autograd.grad(out, x.leaves, x.grad, allow_unused=True)


def relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm())


def expected_rows(problem: Problem, x: Inputs) -> tuple[Tensor, Tensor]:
    """Some queries of the first image, and their output by the definition in float64."""
    queries = torch.randperm(x.qkv[0, ..., 0, 0, 0].numel())[:CHECKED].sort().values
    return queries, exact_rows(problem, *x.qkv.unbind(-3), x.bias, queries)


def expected_gradient(problem: Problem, x: Inputs) -> Tensor | None:
    """Gradient of the first head of the first image by the torch backend in float32, where that is little work."""
    if problem.pairs / problem.batch / problem.heads > CHECKED_PAIRS:
        return None
    qkv = x.qkv[:1, ..., :1, :].detach().float().requires_grad_()
    bias = None if x.bias is None else x.bias[:1].detach()
    with use_backend("torch"):
        out = local_attention(*qkv.unbind(-3), problem.pattern, bias=bias)
    return torch.autograd.grad(out, qkv, x.grad[:1, ..., :1, :].float())[0]  # type: ignore[arg-type]


# --- one problem ----------------------------------------------------------------------------------------------------


def memory(run: Callable[[], object], device: torch.device) -> float | None:
    """MiB that a call needs at most, besides its inputs; None but on a GPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def captured(run: Callable[[], object], device: torch.device) -> Callable[[], object] | None:
    """Replay of the call's kernels without the host; None where it can't be captured."""
    if device.type != "cuda":
        return None
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            run()
        graph.replay()
        torch.cuda.synchronize()
    except Exception:  # whatever a contender does that a graph can't hold; its eager time counts then
        with contextlib.suppress(RuntimeError):
            torch.cuda.synchronize()
        return None
    return graph.replay


def prepared(problem: Problem, mode: str, name: str, sets: Sequence[Inputs], exact: Any, options: Options) -> Any:
    """A contender's call over all sets and the facts about it; or the reason why it is left out."""
    try:
        attention = CONTENDERS[name](problem, options.device)
        facts: dict[str, Any] = {}
        if mode == MODES[0]:
            queries, rows = exact["rows"]
            out = forward(attention, sets[0])
            facts["error"] = relative(out[0].flatten(0, -3)[queries.to(out.device)], rows)
        else:
            gradient = training(attention, sets[0])[0]
            expected = exact["gradient"]()
            facts["error"] = None if expected is None else relative(gradient[:1, ..., :1, :], expected)
        # Dense attention is another function wherever the pattern hides something.
        same = name != "dense" or (problem.density == 1.0 and not problem.bias)
        allowed = TOLERANCE[options.dtype] if options.device.type == "cuda" else ON_CPU
        if same and facts["error"] is not None and not facts["error"] <= allowed:
            raise LeftOut(f"off by {facts['error']:.1e} (relative, 2-norm) from the definition")
        facts["error"] = facts["error"] if same else None
        call = forward if mode == MODES[0] else training
        facts["extra_mib"] = memory(lambda: call(attention, sets[0]), options.device)
    except LeftOut as reason:
        return None, {"left_out": str(reason)}
    except Exception as error:  # a contender may fail with anything; the record says with what
        if options.device.type == "cuda":
            torch.cuda.empty_cache()
        return None, {"left_out": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"}

    def all_sets() -> None:
        for x in sets:
            call(attention, x)

    return all_sets, facts


def measure(problem: Problem, mode: str, names: Sequence[str], options: Options) -> list[dict[str, Any]]:
    """Records of all contenders for one problem."""
    torch.manual_seed(0)
    sets = random_inputs(problem, options)
    kept: dict[str, Tensor | None] = {}

    def gradient() -> Tensor | None:
        if "gradient" not in kept:
            kept["gradient"] = expected_gradient(problem, sets[0])
        return kept["gradient"]

    exact = {"gradient": gradient, "rows": expected_rows(problem, sets[0]) if mode == MODES[0] else None}
    facts, runs, graphs = {}, {}, {}
    for name in names:
        run, facts[name] = prepared(problem, mode, name, sets, exact, options)
        if run is not None:
            runs[name, "eager"] = run
            graph = captured(run, options.device)
            if graph is not None:
                graphs[name, "graph"] = graph
    seconds = options.seconds / 2
    times = interleaved(runs, options.device, options.rounds, seconds=seconds)
    times |= interleaved(graphs, options.device, options.rounds, seconds=seconds)
    return [record(problem, mode, name, facts[name], times, len(sets), options) for name in names]


def record(
    problem: Problem, mode: str, name: str, facts: dict[str, Any], times: dict[Any, list[float]], sets: int,
    options: Options,
) -> dict[str, Any]:  # fmt: skip
    """One line of the file; `ms` is of a replayed graph where there is one."""
    backward = mode != MODES[0]
    dtype = next(key for key, value in DTYPES.items() if value == options.dtype)
    found = {
        "list": problem.group, "problem": problem.name, "kind": problem.kind, "density": problem.density,
        "dtype": dtype, "mode": mode, "contender": name, "gates": list(problem.gates), **facts,
    }  # fmt: skip
    eager, graph = ([ms / sets for ms in times.get((name, kind), [])] for kind in ("eager", "graph"))
    if not eager:
        return found
    best = graph or eager
    low, ms, high = statistics.quantiles(best, n=4) if len(best) > 1 else best * 3
    work, moved = problem.flops(backward), problem.ideal_bytes(options.dtype.itemsize, backward)
    return found | {
        "ms": ms, "q1_ms": low, "q3_ms": high, "eager_ms": statistics.median(eager), "graph": bool(graph),
        "launch_bound": bool(graph) and statistics.median(eager) > LAUNCH_BOUND * ms,
        "tflops": work / ms / 1e9, "gbytes": moved / ms / 1e6, "intensity": work / moved, "input_sets": sets,
    }  # fmt: skip


# --- the machine and whole models -----------------------------------------------------------------------------------


def ceilings(device: torch.device, dtype: torch.dtype, smoke: bool) -> dict[str, float]:
    """Rates that nothing here exceeds: bytes of a large copy, read and written, and operations of a large product."""
    rows, side = (2**10, 128) if smoke else (2**28, 8192)
    source = torch.randn(rows, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = interleaved({"copy": lambda: target.copy_(source), "product": lambda: a @ b}, device, 10)
    return {
        "gbytes": 2 * source.nbytes / statistics.median(times["copy"]) / 1e6,
        "tflops": 2 * side**3 / statistics.median(times["product"]) / 1e9,
    }


def clocks(device: torch.device) -> str | None:
    """Clocks and power as the driver tells them; the benchmark leaves them as they are."""
    query = "clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv", f"--id={device.index or 0}"]
    if device.type != "cuda":
        return None
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def measure_models(options: Options) -> list[dict[str, Any]]:
    """Whole models in bfloat16: training steps under autocast, and inference."""
    found = []
    for names, batch, train in MODELS:
        settings = benchmarking.Settings(
            train=train, device=str(options.device), dtype="bfloat16", rounds=options.rounds
        )
        results = benchmarking.benchmark(names, batches=[batch], accelerate=len(names) == 1, settings=settings)
        found += [{"train": train, **asdict(result)} for result in results]
    return found


# --- the file and the tables ----------------------------------------------------------------------------------------


def results_path(device: torch.device, folder: Path | None) -> Path:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return (RESULTS if folder is None else folder) / re.sub(r"\W+", "-", name).strip("-").lower() / "kernels.json"


def merged(path: Path, fresh: dict[str, Any]) -> dict[str, Any]:
    """What the file holds, with new records in place of those of the same problem, mode, contender and dtype."""
    older = json.loads(path.read_text()) if path.exists() else {"records": [], "models": []}

    def key(r: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(r[name] for name in ("list", "problem", "mode", "contender", "dtype"))

    new = {key(r) for r in fresh["records"]}
    records = [r for r in older["records"] if key(r) not in new] + fresh["records"]
    return {**older, **fresh, "records": records, "models": fresh["models"] or older["models"]}


def show(records: Sequence[dict[str, Any]]) -> None:
    columns = ("problem", "mode", "contender", "ms", "over ours", "TFLOP/s", "GB/s", "extra MiB", "note")
    table = Table(*columns, title="local attention (over ours: time over visionattn's)")
    ours = {(r["problem"], r["mode"]): r.get("ms") for r in records if r["contender"] == "visionattn"}
    for r in records:
        cells = [r["problem"], r["mode"], r["contender"]]
        if "ms" not in r:
            table.add_row(*cells, "–", "–", "–", "–", "–", r["left_out"])
            continue
        base = ours.get((r["problem"], r["mode"]))
        note = "launch-bound" if r["launch_bound"] else "" if r["graph"] else "eager"
        memory = "–" if r["extra_mib"] is None else f"{r['extra_mib']:.0f}"
        table.add_row(*cells, f"{r['ms']:.4f}", f"{r['ms'] / base:.2f}" if base else "–", f"{r['tflops']:.1f}",
                      f"{r['gbytes']:.0f}", memory, note)  # fmt: skip
    Console(width=170).print(table)


def measured_in_time(
    problems: Sequence[Problem], names: Sequence[str], options: Options, limit: float
) -> Iterator[list[dict[str, Any]]]:
    """Records, problem by problem; those for which there is no time are named."""
    begin = time.perf_counter()
    for problem in problems:
        for mode in MODES:
            if time.perf_counter() - begin > limit:
                print(f"no time left for {problem.name}, {mode} (--limit {limit:.0f})", flush=True)
                continue
            print(f"{time.perf_counter() - begin:5.0f} s  {problem.group}: {problem.name}, {mode}", flush=True)
            yield measure(problem, mode, names, options)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", nargs="+", default=[*LISTS, "models"], choices=[*LISTS, "models"], dest="lists")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--dtype", default="bf16", choices=list(DTYPES))
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu with --smoke")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds; the contenders take turns in each")
    parser.add_argument("--seconds", type=float, default=6.0, help="time for the rounds of one problem and mode")
    parser.add_argument("--limit", type=float, default=450.0, help="seconds after which a list begins no new problem")
    parser.add_argument("--quick", action="store_true", help="a subset of each list, in about three minutes")
    parser.add_argument("--smoke", action="store_true", help="tiny problems, to see that everything runs")
    parser.add_argument("--check", action="store_true", help="exit status 1 where a promise is not kept")
    parser.add_argument("--plot", action="store_true", help="only draw the roofline of what was measured")
    parser.add_argument("--output", type=Path, help="folder for the results; benchmarks/results by default")
    return parser.parse_args()


def main() -> None:
    arguments = parsed()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available() and not arguments.plot:
        sys.exit("benchmarks/kernels.py needs a CUDA or ROCm device; --device cpu --smoke tries it without one")
    if device.type != "cuda" and not arguments.smoke:
        sys.exit(f"--device {arguments.device} goes with --smoke: the figures of this benchmark are of GPUs")
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    if arguments.plot:
        draw(arguments.output)
        return
    dtype = torch.float32 if device.type == "cpu" else DTYPES[arguments.dtype]
    options = Options(device, dtype, arguments.rounds, arguments.seconds)
    if arguments.quick or arguments.smoke:
        options.rounds, options.seconds = min(arguments.rounds, 3 if arguments.smoke else 10), 2.0
    q = torch.randn(1, 8, 8, 1, 32, device=device, dtype=dtype)
    rates = ceilings(device, dtype, arguments.smoke)
    print(f"a large copy moves {rates['gbytes']:.0f} GB/s, a large product computes {rates['tflops']:.1f} TFLOP/s")
    backend = explain(local_attention, q, q, q, SMOKE[0].pattern)
    path, before = results_path(device, arguments.output), clocks(device)
    content: dict[str, Any] = {}
    for name in ["smoke"] if arguments.smoke else arguments.lists:
        fresh: dict[str, Any] = {"records": [], "models": []}
        if name == "models" and not arguments.quick:
            fresh["models"] = measure_models(options)
        elif name != "models":
            problems = SMOKE if arguments.smoke else chosen([name], arguments.quick)
            limit = 180 / len(arguments.lists) if arguments.quick else arguments.limit
            for records in measured_in_time(problems, arguments.contenders, options, limit):
                fresh["records"] += records
        settings = benchmarking.Settings(device=str(device))
        about = {"machine": benchmarking.machine(settings), "backend": backend, "ceilings": rates}
        content = merged(path, {**about, "clocks": [before, clocks(device)], **fresh})
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")
        show(fresh["records"])
    found = check(content["records"], content["models"])
    show_gates(found)
    print(f"written: {path}")
    ours = [r for r in content["records"] if r["contender"] == "visionattn" and "left_out" in r]
    for r in ours:
        print(f"visionattn does not run {r['problem']}, {r['mode']}: {r['left_out']}")
    if ours or (arguments.check and not all(gate.kept for gate in found)):
        sys.exit(1)


def draw(folder: Path | None) -> None:
    from roofline import draw_roofline

    files = sorted((RESULTS if folder is None else folder).glob("*/kernels.json"))
    if not files:
        sys.exit("there is nothing to draw: no kernels.json among the results")
    for path in files:
        for suffix in (".png", ".svg"):
            draw_roofline(json.loads(path.read_text()), path.with_name(f"roofline{suffix}"))
            print(f"written: {path.with_name(f'roofline{suffix}')}")


if __name__ == "__main__":
    main()
