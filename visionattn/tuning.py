# SPDX-License-Identifier: Apache-2.0
"""`visionattn tune`: which tiles of the local-attention kernels are fastest on this card, for the maps of models."""

from __future__ import annotations

import dataclasses
import heapq
import json
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from visionattn import benchmarking
from visionattn._files import replacing
from visionattn._timing import Run, cache_sweeper, interleaved
from visionattn.acceleration import accelerate
from visionattn.kernels import dispatch, tiles
from visionattn.kernels.local_torch import Inputs, Options, local_attention_torch
from visionattn.kernels.tiles import LocalProblem, Tile, Tiling

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Relative error (2-norm) against float32 that rounding of operands and results explains; more is another function.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 5e-3, torch.float32: 1e-3}
GAIN = 0.98  # a candidate must take less of the static choice's time: smaller differences are noise
REFINED = 3  # candidates whose warps and pipeline depths are varied

Progress = Callable[[str], None]


class Met(NamedTuple):
    """A call of local attention that a model made: tensors without memory, and what is not a tensor."""

    inputs: Inputs
    options: Options


@dataclass(frozen=True)
class Settings:
    """How models are tuned.

    Args:
        size: Side of the square images; None means each model's own.
        batch: Images.
        dtype: "bf16", "fp16" or "fp32".
        top: Candidates of each kernel that are measured: those the model of the cost finds cheapest.
        rounds: Timed rounds; the candidates take turns in each.

    Raises:
        ValueError: A value is not allowed.
    """

    size: int | None = None
    batch: int = 64
    dtype: str = "bf16"
    top: int = 12
    rounds: int = 15

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} must be one of {', '.join(DTYPES)}")
        for name in ("size", "batch", "top", "rounds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")


@dataclass
class Outcome:
    """What was measured for one problem.

    Args:
        key: Name of the problem in the file.
        problem: The problem.
        static: The tiles that the model of the cost chooses.
        best: The tiles that were fastest.
        static_ms: Milliseconds of each kernel with the static choice; a kernel that is not launched has none.
        best_ms: The same with the best tiles.
        rejected: Candidates that did not run, or gave other numbers, with the reason.
    """

    key: str
    problem: LocalProblem
    static: Tiling
    best: Tiling
    static_ms: dict[str, float]
    best_ms: dict[str, float]
    rejected: list[str] = field(default_factory=list)


# --- which problems ---------------------------------------------------------------------------------------------------


@contextmanager
def recording() -> Iterator[list[Met]]:
    """Collect the calls of local attention in the block; they return tensors without computing them."""
    met: list[Met] = []
    run = dispatch.run

    def note(problem: dispatch.Problem, *arguments: Any) -> Any:
        if problem.op != "local_attention":
            return run(problem, *arguments)
        inputs, options = arguments
        met.append(Met(inputs, options))
        out = inputs.q.new_empty(*inputs.q.shape[:-1], inputs.v.shape[-1])
        lse = inputs.q.new_empty(inputs.q.shape[:-1], dtype=torch.float32)
        return (out, lse) if options.with_lse else (out,)

    dispatch.run = note
    try:
        yield met
    finally:
        dispatch.run = run


def calls_of(model: nn.Module, input_size: Sequence[int], batch: int) -> list[Met]:
    """Calls of local attention in a forward of `batch` images; nothing is computed, and the model loses its weights."""
    images = torch.empty(batch, *input_size, device="meta")
    with recording() as met, torch.inference_mode():
        model.to("meta").eval()(images)
    return met


def problem_of(met: Met, dtype: torch.dtype) -> LocalProblem:
    """What the tiles of a call depend on."""
    q, k, v, bias, *_ = met.inputs
    sizes = tuple(q.shape[1:-2]), tuple(k.shape[1:-2]), q.shape[-1], v.shape[-1]
    return LocalProblem(met.options.pattern, *sizes, dtype.itemsize, bias is not None, bool(met.inputs.rel_tables))


def distinct(calls: Sequence[Met], dtype: torch.dtype, device: tiles.Device) -> dict[str, Met]:
    """The first call of every problem that has tiles of its own."""
    from visionattn.kernels import local_triton

    found: dict[str, Met] = {}
    for met in calls:
        q, v = met.inputs.q, met.inputs.v
        asked = dispatch.Problem("local_attention", "cuda", dtype, q.shape[-1], v.shape[-1], q.ndim - 3)
        if local_triton.supports(asked) is None:
            found.setdefault(tiles.key_of(tiles.canonical(problem_of(met, dtype)), device), met)
    return found


# --- measuring one problem --------------------------------------------------------------------------------------------


class _Candidate(NamedTuple):
    """A tile of one kernel; `fused`: it makes all gradients."""

    kernel: str
    tile: Tile
    fused: bool = False


class Bench:
    """A call on real tensors, its kernels with any tiles, and what they should give.

    Args:
        met: The call as a model made it.
        dtype: Of q, k, v and what goes with them; the bias stays in its own.
        device: Where it runs.
    """

    def __init__(self, met: Met, dtype: torch.dtype, device: torch.device) -> None:
        from visionattn.kernels import local_triton

        self.triton, self.device = local_triton, device
        inputs = _materialised(met.inputs, dtype, device)
        self.options = met.options._replace(with_lse=True)
        self.call = local_triton._call(inputs, self.options)
        self.plan = local_triton.plan_of(self.call, self.options.pattern, tiles.device_of(device))
        self.problem = self.plan.problem
        self.static = static_tiling(self.problem, self.plan.device)
        self.table = local_triton._relative_table(inputs, self.options).float() if inputs.rel_tables else None
        self.tolerance = TOLERANCE[dtype]
        self._expect(inputs)
        # All candidates write to the same memory.
        self.written = torch.empty_like(self.out), torch.empty_like(self.lse), torch.empty_like(self.lse)
        self.gradients = local_triton.empty_gradients(self.call)
        # The kernel of the keys' gradients reads what that of the queries' leaves behind.
        self.prepare(_Candidate("backward_query", self.static.backward_query, self.static.fused))[0]()
        self.delta = self.written[2].clone()

    def _expect(self, inputs: Inputs) -> None:
        """Output and gradients by the torch path, in float32."""
        leaves = [None if t is None else t.detach().float().requires_grad_() for t in inputs.flat()]
        out, lse = local_attention_torch(Inputs.unpack(leaves), self.options)
        self.grad_out = torch.randn_like(out).to(self.call.q.dtype)
        there = [leaf for leaf in leaves if leaf is not None]
        found = iter(torch.autograd.grad(out, there, self.grad_out.float()))
        self.grads = Inputs.unpack([None if leaf is None else next(found) for leaf in leaves])
        self.out, self.lse = out.detach().to(self.call.q.dtype), lse.detach().contiguous()

    @property
    def may_fuse(self) -> bool:
        """Whether one kernel could make all gradients of this call."""
        return self.triton.fuses(self.call, self.plan._replace(tiling=self.static._replace(fused=True)))

    def prepare(self, candidate: _Candidate) -> tuple[Run, Callable[[], dict[str, tuple[Tensor, Tensor]]]]:
        """The launch of a candidate, and what it gave beside what it should give; ask after its first run."""
        for x in (*self.written, *self.gradients[:3]):
            x.fill_(float("nan"))  # shows what is not written
        tiling = self.static._replace(**{candidate.kernel: candidate.tile}, fused=candidate.fused)
        plan = self.plan._replace(tiling=tiling)
        return getattr(self, f"_{candidate.kernel}")(plan)

    def _forward(self, plan: Any) -> tuple[Run, Callable[[], dict[str, tuple[Tensor, Tensor]]]]:
        out, lse, _ = self.written
        launch = self.triton.forward_launch(self.call, plan, self.options.scale, out, lse, True)
        return launch.run, lambda: {"out": (out, self.out), "lse": (lse, self.lse)}

    def _backward_query(self, plan: Any) -> tuple[Run, Callable[[], dict[str, tuple[Tensor, Tensor]]]]:
        saved, grads = self._saved(self.written[2]), self.gradients
        if grads.rel is not None:
            grads.rel.zero_()
        want_bias = self.call.bias is not None
        launch, partial = self.triton.query_launch(self.call, plan, self.options.scale, saved, grads, want_bias)

        def run() -> None:
            launch.run()
            if partial is not None:
                partial.sum(0)  # belongs to it: the tile decides how much there is to add up

        def compared() -> dict[str, tuple[Tensor, Tensor]]:
            dq = grads.q.float()
            if grads.rel is not None and self.table is not None:
                dq = dq + grads.rel @ self.table
            pairs = {"dq": (dq, self.grads.q)}
            if partial is not None and self.grads.bias is not None:
                pairs["dbias"] = (partial.sum(0), self.grads.bias)
            if self.triton.fuses(self.call, plan):
                pairs |= {"dk": (grads.k, self.grads.k), "dv": (grads.v, self.grads.v)}
            return pairs

        return run, compared

    def _backward_key(self, plan: Any) -> tuple[Run, Callable[[], dict[str, tuple[Tensor, Tensor]]]]:
        grads, saved = self.gradients, self._saved(self.delta)
        launch, rows = self.triton.key_launch(self.call, plan, self.options.scale, saved, grads)

        def compared() -> dict[str, tuple[Tensor, Tensor]]:
            pairs = {"dk": (grads.k, self.grads.k), "dv": (grads.v, self.grads.v)}
            for name, row, expected in zip(
                ("dpad_k", "dpad_v"), rows, (self.grads.pad_k, self.grads.pad_v), strict=True
            ):
                if expected is not None and row.numel():
                    pairs[name] = (row.view(-1, *expected.shape).sum(0), expected)
            return pairs

        return launch.run, compared

    def _saved(self, delta: Tensor) -> Any:
        return self.triton.Saved(self.out, self.lse, self.grad_out.contiguous(), None, delta)


def _materialised(inputs: Inputs, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Random tensors with the strides and shared memory that the recorded ones have."""
    memory: dict[int, Tensor] = {}

    def real(t: Tensor | None, kind: torch.dtype) -> Tensor | None:
        if t is None:
            return None
        storage = t.untyped_storage()
        if storage._cdata not in memory:
            memory[storage._cdata] = torch.randn(storage.nbytes() // t.element_size(), device=device).to(kind)
        return memory[storage._cdata].as_strided(t.shape, t.stride(), t.storage_offset())

    real_ones = [real(t, dtype) for t in inputs.flat()]
    tables = tuple(t.float() for t in real_ones[8:] if t is not None)
    bias = real_ones[3]
    return Inputs.unpack(real_ones)._replace(bias=None if bias is None else bias.float(), rel_tables=tables)


def static_tiling(problem: LocalProblem, device: tiles.Device) -> Tiling:
    """The tiles that the model of the cost chooses, whatever was measured."""
    measured, tiles.measured = tiles.measured, dict  # type: ignore[assignment]
    try:
        return tiles.tiles.__wrapped__(problem, device)
    finally:
        tiles.measured = measured


def candidates(problem: LocalProblem, device: tiles.Device, kernel: str, top: int) -> list[Tile]:
    """The tiles of a kernel that the model of the cost finds cheapest, cheapest first."""
    problem = tiles.canonical(problem)
    of_keys, backward = kernel == "backward_key", kernel != "forward"
    found = set(tiles._candidates(problem, of_keys, backward, device))
    return heapq.nsmallest(top, found, key=lambda t: (tiles.cost(problem, t, device, of_keys, backward), t))


def variants(tile: Tile) -> list[Tile]:
    """The same walk with half and twice the warps, and other depths of the pipeline."""
    found = [tile._replace(stages=stages) for stages in (1, 2, 3)]
    found += [tile._replace(warps=warps) for warps in (tile.warps // 2, tile.warps * 2) if 1 <= warps <= 8]
    return [t for t in found if t != tile]


def tune_problem(key: str, bench: Bench, top: int, rounds: int) -> Outcome:
    """Measure the candidates of one problem.

    Raises:
        RuntimeError: No candidate of a kernel gives what the torch path gives.
    """
    static = bench.static
    rejected: list[str] = []
    find = partial(_fastest, bench, top=top, rounds=rounds, rejected=rejected)
    best, static_ms, best_ms = static, {}, {}
    best_tile, static_ms["forward"], best_ms["forward"] = find("forward", static.forward)
    best = best._replace(forward=best_tile)
    if bench.may_fuse:
        best, *figures = _tuned_backward(find, bench, best)
    else:  # a call of this problem that can fuse must still find a tile that it can use
        query = find("backward_query", static.backward_query, windows=static.fused)
        keys = find("backward_key", static.backward_key)
        best = best._replace(backward_query=query[0], backward_key=keys[0])
        own = {"backward_query": query[1], "backward_key": keys[1]}
        figures = [own, {"backward_query": query[2], "backward_key": keys[2]}]
    return Outcome(key, bench.problem, static, best, static_ms | figures[0], best_ms | figures[1], rejected)


def _tuned_backward(
    find: Callable[..., tuple[Tile, float, float]], bench: Bench, best: Tiling
) -> tuple[Tiling, dict[str, float], dict[str, float]]:
    """One kernel for all gradients against two, by their times."""
    static = bench.static
    together = None
    whole = static.backward_query if static.fused else tiles._window_tile(bench.problem, True, bench.plan.device)
    if whole is not None:
        together = find("backward_query", whole, fused=True, windows=True)
    query = find("backward_query", static.backward_query)
    keys = find("backward_key", static.backward_key)
    apart = {"backward_query": query[2], "backward_key": keys[2]}
    best = best._replace(backward_key=keys[0])
    own = {"backward_query": query[1], "backward_key": keys[1]}
    if together is not None and static.fused:
        own = {"backward_query": together[1]}
    if together is not None and together[2] <= sum(apart.values()):
        return best._replace(backward_query=together[0], fused=True), own, {"backward_query": together[2]}
    return best._replace(backward_query=query[0], fused=False), own, apart


def _fastest(
    bench: Bench, kernel: str, static: Tile, *, top: int, rounds: int, rejected: list[str], fused: bool = False,
    windows: bool = False,
) -> tuple[Tile, float, float]:  # fmt: skip
    """The fastest tile of a kernel, the milliseconds of the static one, and its own.

    Args:
        bench: The problem.
        kernel: One of `KERNELS`.
        static: What the others are compared with.
        top: Candidates besides it.
        rounds: Timed rounds.
        rejected: Takes the candidates that are left out.
        fused: The kernel makes all gradients.
        windows: Only tiles that are whole windows.
    """
    found = candidates(bench.problem, bench.plan.device, kernel, top)
    first = [tile for tile in dict.fromkeys([static, *found]) if not windows or tiles.can_fuse(bench.problem, tile)]
    times = _times(bench, [_Candidate(kernel, tile, fused) for tile in first], rounds, rejected)
    leaders = sorted(times, key=times.__getitem__)[:REFINED]
    more = [c._replace(tile=tile) for c in leaders for tile in variants(c.tile)]
    again = dict.fromkeys([_Candidate(kernel, static, fused), *leaders, *more])
    times = _times(bench, list(again), rounds, rejected) or times
    if not times:
        raise RuntimeError(f"no tile of {kernel} gives what the torch path gives for {bench.problem}: {rejected[-1]}")
    best = min(times, key=times.__getitem__)
    own = times.get(_Candidate(kernel, static, fused), float("inf"))
    return (static, own, own) if times[best] > GAIN * own else (best.tile, own, times[best])


def _times(bench: Bench, tried: Sequence[_Candidate], rounds: int, rejected: list[str]) -> dict[_Candidate, float]:
    """Median milliseconds of the candidates that run and give the right numbers."""
    runs: dict[_Candidate, Run] = {}
    for candidate in tried:
        reason = None
        try:
            run, compared = bench.prepare(candidate)
            run()
            reason = _difference(compared(), bench.tolerance)
        except Exception as error:  # a compiler's or a driver's, such as too little shared memory
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if reason is None:
            runs[candidate] = run
        else:
            rejected.append(f"{candidate.kernel} {candidate.tile}: {reason}")
    times = interleaved(runs, bench.device, rounds, cache_sweeper(bench.device))
    return {candidate: statistics.median(taken) for candidate, taken in times.items()}


def _difference(pairs: Mapping[str, tuple[Tensor, Tensor]], tolerance: float) -> str | None:
    """What differs from the torch path by more than rounding, or None."""
    for name, (found, expected) in pairs.items():
        off = (found.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-30)
        if not off <= tolerance:  # NaN does not pass
            return f"{name} is off by {off:.1e} (relative, 2-norm); {tolerance:.0e} is allowed"
    return None


# --- models and the file ----------------------------------------------------------------------------------------------


def tune(
    names: Sequence[str],
    settings: Settings | None = None,
    output: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Iterator[Outcome]:
    """Measure the tiles of every local-attention problem of some models; the file grows with each.

    Models of other libraries are taken as `visionattn.accelerate` changes them.

    Args:
        names: Names of our or timm's models, with `*` and `?`.
        settings: How they are tuned.
        output: File to merge the tiles into; the one that the kernels read, `tiles.cache_path()`, if None.
        progress: Is told what is being done.

    Yields:
        What was found for each problem, after the file holds it.

    Raises:
        ValueError: A name is unknown, no model has local attention, the file is not one of these, or `output` is
            None in Triton's interpreter, whose times mean nothing.
        RuntimeError: There is no GPU, or no candidate of a kernel is right.
    """
    settings, say = settings or Settings(), progress or (lambda text: None)
    device = _device()
    if output is None and device.type == "cpu":
        raise ValueError("output=None in Triton's interpreter, whose times mean nothing; name a file")
    path = tiles.cache_path() if output is None else Path(output)
    read(path)
    dtype, rates = DTYPES[settings.dtype], tiles.device_of(device)
    found: dict[str, Met] = {}
    for name in benchmarking.find_models(names):
        say(f"looking for local attention in {name}")
        model, input_size = benchmarking.build(name, settings.size)
        accelerate(model)
        for key, met in distinct(calls_of(model, input_size, settings.batch), dtype, rates).items():
            found.setdefault(key, met)
    if not found:
        raise ValueError(f"{', '.join(names)}: no local attention that the kernels run; see `visionattn zoo`")
    for index, (key, met) in enumerate(found.items()):
        say(f"{index + 1} of {len(found)}: {key}")
        outcome = tune_problem(key, Bench(met, dtype, device), settings.top, settings.rounds)
        write([outcome], path, settings)
        yield outcome


def _device() -> torch.device:
    """Where the kernels run."""
    from visionattn.kernels import local_triton

    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if local_triton.interpreted():
        return torch.device("cpu")
    raise RuntimeError("tuning measures kernels on a GPU, and PyTorch sees none: it needs a CUDA or ROCm device")


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a file of tiles; of an empty one where there is none.

    Raises:
        ValueError: The file is not one of these.
    """
    try:
        content = json.loads(Path(path).read_text())
        for entry in content["tilings"].values():
            tiles.from_json(entry)
    except FileNotFoundError:
        return {"tilings": {}, "measurements": {}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no measurements of tiles ({error!r}); remove it, or name another") from error
    return {"measurements": {}, **content}


def write(outcomes: Sequence[Outcome], path: str | os.PathLike[str], settings: Settings) -> None:
    """Add outcomes to a file of tiles, and let the kernels see them; the file is complete or as it was."""
    content = read(path)
    on_gpu = torch.cuda.is_available()
    machine = benchmarking.machine(benchmarking.Settings(device="cuda" if on_gpu else "cpu"))
    content["about"] = "tiles of visionattn's kernels, as `visionattn tune` measured them"
    for outcome in outcomes:
        content["tilings"][outcome.key] = tiles.to_json(outcome.best)
        content["measurements"][outcome.key] = {
            "static_ms": outcome.static_ms,
            "best_ms": outcome.best_ms,
            "interpreted": not on_gpu,  # then the times mean nothing
            "settings": dataclasses.asdict(settings),
            "machine": machine,
        }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    tiles.measured.cache_clear()
    tiles.tiles.cache_clear()
    _forget_geometry()


def _forget_geometry() -> None:
    """Launch plans keep the tiles that they were made with."""
    from visionattn.kernels import local_triton

    local_triton._geometry.cache_clear()
