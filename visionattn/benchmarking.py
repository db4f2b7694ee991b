# SPDX-License-Identifier: Apache-2.0
"""Speed, memory and cost of models, measured in turns in one process, so that the machine's noise hits all alike."""

from __future__ import annotations

import contextlib
import copy
import csv
import dataclasses
import datetime
import fnmatch
import json
import math
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import visionattn
from visionattn._files import replacing
from visionattn.acceleration import accelerate as accelerate_model
from visionattn.layers import unknown
from visionattn.models._macs import count_macs

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LARGEST_BATCH = {"cuda": 1024, "cpu": 64}
WARM_UPS = 3
MIB = 2**20

Batch = int | Literal["auto"]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Measurement:
    """One model at one image size and batch.

    Args:
        model: timm's or our name.
        accelerated: Whether `visionattn.accelerate` was applied.
        input_size: `(channels, height, width)` of an image.
        batch: Images a step; None where not even one could be run.
        parameters: Number of parameters.
        gmacs: Multiply-accumulates of one image's forward pass, in billions; None where they cannot be counted.
        top1: Published ImageNet-1K top-1 accuracy in percent of the model's default weights, where known.
        top1_size: Side of the images that `top1` holds for.
        images_per_second: Throughput, at the median latency.
        latency_ms: Median time of one step (a forward pass, or a training step) over the rounds.
        latency_q1_ms: First quartile of it.
        latency_q3_ms: Third quartile of it.
        peak_mib: Largest memory of a step with the weights, in MiB; None but on CUDA devices.
        rounds: Rounds that the quartiles are of.
        steps: Steps a round.
        error: Why there are no figures; None where there are.
    """

    model: str
    accelerated: bool
    input_size: tuple[int, int, int] | None
    batch: int | None
    parameters: int | None = None
    gmacs: float | None = None
    top1: float | None = None
    top1_size: int | None = None
    images_per_second: float | None = None
    latency_ms: float | None = None
    latency_q1_ms: float | None = None
    latency_q3_ms: float | None = None
    peak_mib: float | None = None
    rounds: int = 0
    steps: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Settings:
    """How models are run.

    Args:
        train: Measure training steps (forward, cross-entropy, backward, SGD) instead of inference.
        compile: Compile models with `torch.compile`, for each shape.
        device: As `torch.device` takes it.
        dtype: "float32", "bfloat16" or "float16"; inference casts the weights, training runs under autocast.
        rounds: Timed rounds.
        round_seconds: Time that a model should take in one round; a slower model makes one step a round.

    Raises:
        ValueError: A value is not allowed, or the device is not there.
    """

    train: bool = False
    compile: bool = False
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    dtype: str = "float32"
    rounds: int = 9
    round_seconds: float = 0.25

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} must be one of {', '.join(DTYPES)}")
        try:
            kind = torch.device(self.device).type
        except RuntimeError:
            kind = ""
        if kind not in LARGEST_BATCH:
            raise ValueError(f"device={self.device!r} must be 'cpu', 'cuda' or 'cuda:N'")
        if kind == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device={self.device!r} is not here; use 'cpu'")
        if self.rounds < 1:
            raise ValueError(f"rounds={self.rounds} must be at least 1")
        if self.round_seconds < 0:
            raise ValueError(f"round_seconds={self.round_seconds} must not be negative")

    @property
    def on_cuda(self) -> bool:
        """Whether the device is a GPU."""
        return torch.device(self.device).type == "cuda"

    @property
    def largest_batch(self) -> int:
        """Where the search for the largest batch ends."""
        return LARGEST_BATCH[torch.device(self.device).type]


def benchmark(
    names: Sequence[str],
    sizes: Sequence[int] = (),
    batches: Sequence[Batch] = ("auto",),
    accelerate: bool = False,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> list[Measurement]:
    """Measure models, round by round, each in turn.

    Args:
        names: Names of timm's or our models; `*` and `?` stand for any letters.
        sizes: Sides of square images; each model's own input size if none.
        batches: Images a step. "auto" takes the largest power of two that fits: up to 1024 on a GPU, by trying; up to
            64 on a CPU, by an estimate from the tensors that one image's training step keeps, in half the free memory.
        accelerate: Measure models of timm that `visionattn.accelerate` knows twice, as they are and accelerated.
        settings: How models are run.
        progress: Is told what is being done.

    Returns:
        One measurement for each model, size and batch. A model that cannot be run has its `error` there.

    Raises:
        ValueError: No model has such a name, or a size or batch is not positive.
    """
    _check_positive("sizes", sizes)
    _check_positive("batches", [batch for batch in batches if batch != "auto"])
    if not batches:
        raise ValueError("batches is empty; give numbers of images, or 'auto'")
    found = find_models(names)
    sides: list[int | None] = [*sizes] or [None]
    settings = settings or Settings()
    say = progress or (lambda text: None)
    runs: list[_Run] = []
    for name in found:
        for size in sides:
            say(f"preparing {name}")
            runs += _prepare(name, size, batches, accelerate, settings)
    for turn in range(settings.rounds):
        say(f"round {turn + 1} of {settings.rounds}")
        for run in runs:
            run.measure()
    return [run.result() for run in runs]


def find_models(names: Sequence[str]) -> list[str]:
    """Names of timm's and our models that match, each once.

    Raises:
        ValueError: A name or pattern matches none; the nearest are offered.
    """
    known = timm.list_models()
    found: list[str] = []
    for name in names:
        matching = [model for model in known if fnmatch.fnmatchcase(model, name)]
        if not matching:
            raise ValueError(unknown("model", name, known))
        found += [model for model in matching if model not in found]
    if not found:
        raise ValueError("names is empty; give names of models, such as va_swin_tiny or 'va_nat_*'")
    return found


def read_accuracies(path: str | os.PathLike[str]) -> dict[str, tuple[float, int | None]]:
    """Top-1 accuracy in percent, and side of the images it holds for, of each model of a CSV file.

    The file has the columns `model` and `top1`, and perhaps `img_size` or `input_size`, as timm's tables of results and
    the `results.csv` of `visionattn evaluate imagenet` do. Rows without an accuracy are left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A column is missing, or an accuracy is no percentage.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"--top1 {path}: there is no such file")
    found: dict[str, tuple[float, int | None]] = {}
    with Path(path).open(newline="") as file:
        reader = csv.DictReader(file)
        missing = {"model", "top1"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"--top1 {path} has no column {' and '.join(sorted(missing))}; it needs model and top1")
        for row in reader:
            if not row["top1"]:
                continue
            size = (row.get("img_size") or row.get("input_size") or "").split("x")[-1]
            try:
                value = float(row["top1"])
            except ValueError:
                value = -1.0
            if not 0 <= value <= 100:
                raise ValueError(f"--top1 {path}: top1={row['top1']!r} of {row['model']} must be a percentage")
            found[row["model"]] = value, int(size) if size.isdigit() else None
    return found


def with_accuracies(
    results: Sequence[Measurement], accuracies: Mapping[str, tuple[float, int | None]]
) -> list[Measurement]:
    """The same measurements, with the accuracies of models by name, or by name without the tag."""
    completed = []
    for result in results:
        architecture = result.model.partition(".")[0]
        matching = [name for name in accuracies if name.partition(".")[0] == architecture]
        name = result.model if result.model in accuracies else next(iter(matching), None)
        if name is not None:
            top1, size = accuracies[name]
            result = dataclasses.replace(result, top1=top1, top1_size=size)
        completed.append(result)
    return completed


def comparable(results: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Measurements with an accuracy that holds for their size of images."""
    return [
        dataclasses.asdict(r)
        for r in results
        if r.top1 is not None and r.input_size is not None and r.top1_size in (None, r.input_size[-1])
    ]


def families(results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Family of each model, by the registry or, of timm's own, by the first part of the name."""
    ours = set(visionattn.list_models())
    return {
        name: visionattn.info(name).family if name in ours else name.partition("_")[0]
        for name in (result["model"] for result in results)
    }


def write_json(results: Sequence[Measurement], settings: Settings, path: str | os.PathLike[str]) -> None:
    """Write measurements with what they were taken with; the file is complete or absent."""
    content = {
        "machine": machine(settings),
        "settings": dataclasses.asdict(settings),
        "results": [dataclasses.asdict(result) for result in results],
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def machine(settings: Settings) -> dict[str, Any]:
    """The device and the versions that figures hold for."""
    return {
        "device": torch.cuda.get_device_name(settings.device) if settings.on_cuda else _cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if settings.on_cuda else None,
        "timm": timm.__version__,
        "visionattn": visionattn.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


@dataclass
class _Run:
    """One measurement on its way: a step, its times so far, and what went wrong."""

    facts: dict[str, Any]
    settings: Settings
    step: Callable[[], None] | None = None
    steps: int = 0
    peak: float | None = None
    seconds: list[float] = field(default_factory=list)
    error: str | None = None

    def fail(self, error: BaseException) -> None:
        """Keep the reason, and let the model go."""
        lines = str(error).strip().splitlines() or _failing_lines(error)
        self.error, self.step = f"{type(error).__name__}: {lines[0]}", None

    def warm_up(self, weights: int) -> None:
        """Run a few steps, measure their memory, and choose how many make a round."""
        assert self.step is not None
        for _ in range(WARM_UPS):
            self.step()
        if self.settings.on_cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.step()
            torch.cuda.synchronize()
            self.peak = (torch.cuda.max_memory_allocated() - before + weights) / MIB
        self.steps = max(1, math.ceil(self.settings.round_seconds / max(self._time(1), 1e-6)))

    def measure(self) -> None:
        """One round."""
        if self.step is None:
            return
        with _reported_by(self):
            self.seconds.append(self._time(self.steps) / self.steps)

    def result(self) -> Measurement:
        """What was measured."""
        if self.error is not None or not self.seconds:
            return Measurement(**self.facts, error=self.error)
        q1, median, q3 = (1000 * float(q) for q in np.quantile(self.seconds, (0.25, 0.5, 0.75)))
        return Measurement(
            **self.facts,
            images_per_second=1000 * self.facts["batch"] / median,
            latency_ms=median,
            latency_q1_ms=q1,
            latency_q3_ms=q3,
            peak_mib=self.peak,
            rounds=len(self.seconds),
            steps=self.steps,
        )

    def _time(self, steps: int) -> float:
        assert self.step is not None
        synchronize = torch.cuda.synchronize if self.settings.on_cuda else (lambda: None)
        synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        synchronize()
        return time.perf_counter() - start


def _failing_lines(error: BaseException) -> list[str]:
    """Lines of code that an error without a message came through, the nearest outside of PyTorch first."""
    torch_folder = str(Path(torch.__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)[::-1]
    return [frame.line or frame.name for frame in frames if not frame.filename.startswith(torch_folder)]


@contextlib.contextmanager
def _reported_by(run: _Run) -> Iterator[None]:
    """Any error of a model, which may be anyone's code, ends its run and no other."""
    try:
        yield
    except Exception as error:
        run.fail(error)
        if run.settings.on_cuda:
            torch.cuda.empty_cache()


def _prepare(name: str, size: int | None, batches: Sequence[Batch], accelerate: bool, settings: Settings) -> list[_Run]:
    """Warmed-up runs of one model at one size, as it is and accelerated where that changes it."""
    facts = {"model": name, "accelerated": False, "input_size": None, "batch": None, **_published(name)}
    broken = _Run(facts, settings)
    with _reported_by(broken):
        model, facts["input_size"] = build(name, size)
        facts["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        facts["gmacs"] = _gmacs(model, facts["input_size"])
        models = [(False, model)]
        if accelerate:
            fast = copy.deepcopy(model)
            models += [(True, fast)] if accelerate_model(fast).replaced else []
        runs = [_runs({**facts, "accelerated": fast}, each, batches, settings) for fast, each in models]
        return [run for pair in zip(*runs, strict=True) for run in pair]  # each beside what it is compared with
    return [broken]


def _runs(facts: dict[str, Any], model: nn.Module, batches: Sequence[Batch], settings: Settings) -> Iterator[_Run]:
    model = model.to(settings.device).train(settings.train)
    if not settings.train:
        model = model.to(DTYPES[settings.dtype])
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    compiled: Any = torch.compile(model, dynamic=False) if settings.compile else model
    for batch in batches:
        run = _Run({**facts, "batch": None if batch == "auto" else batch}, settings)
        with _reported_by(run):
            count = _largest_batch(model, facts["input_size"], settings) if batch == "auto" else batch
            run.facts["batch"] = count
            run.step = _step(compiled, count, facts["input_size"], settings)
            run.warm_up(weights)
        yield run


def build(name: str, size: int | None = None) -> tuple[nn.Module, tuple[int, int, int]]:
    """Model with random weights, and its input size `(channels, height, width)`; `size` asks for square images.

    Raises:
        ValueError: There is no such model.
    """
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
    channels, height, width = (3, 224, 224) if cfg is None else cfg.input_size
    if size is None or (height, width) == (size, size):
        return visionattn.create_model(name), (channels, height, width)
    # Models whose weights depend on it must be made for a size; the others may not know the argument.
    args: dict[str, Any] = {"img_size": size} if cfg is not None and cfg.fixed_input_size else {}
    return visionattn.create_model(name, **args), (channels, size, size)


def _step(model: nn.Module, batch: int, input_size: tuple[int, int, int], settings: Settings) -> Callable[[], None]:
    dtype = DTYPES[settings.dtype]
    images = torch.randn(batch, *input_size, device=settings.device)
    if settings.train:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        return partial(_training_step, model, images, optimizer, dtype)
    return partial(_inference_step, model, images.to(dtype))


def _inference_step(model: nn.Module, images: Tensor) -> None:
    with torch.inference_mode():
        model(images)


def _training_step(model: nn.Module, images: Tensor, optimizer: torch.optim.Optimizer, dtype: torch.dtype) -> None:
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        output = model(images)
    logits = output if isinstance(output, Tensor) else output[0]  # a model with a head for distillation has two
    target = torch.arange(len(images), device=images.device) % logits.shape[-1]
    F.cross_entropy(logits.float(), target).backward()
    optimizer.step()
    optimizer.zero_grad()


def _largest_batch(model: nn.Module, input_size: tuple[int, int, int], settings: Settings) -> int:
    """The largest power of two that fits.

    Raises:
        torch.OutOfMemoryError: Not even one image fits.
    """
    if not settings.on_cuda:
        fitting = int(_free_memory() / 2 // max(_kept_bytes(model, input_size, settings), 1))
        return 2 ** int(math.log2(min(max(fitting, 1), settings.largest_batch)))
    largest = 0
    while largest < settings.largest_batch:
        try:
            _step(model, max(2 * largest, 1), input_size, settings)()
        except torch.OutOfMemoryError:
            if largest == 0:
                raise
            break
        finally:
            model.zero_grad()
            torch.cuda.empty_cache()
        largest = max(2 * largest, 1)
    return largest


def _kept_bytes(model: nn.Module, input_size: tuple[int, int, int], settings: Settings) -> int:
    """Bytes that one image's forward pass keeps for the backward: more than inference needs at a time."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    dtype = torch.float32 if settings.train else DTYPES[settings.dtype]
    # Two images, as batch norms cannot train on one pixel an image.
    images = torch.randn(2, *input_size, device=settings.device, dtype=dtype)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(images)
    del output
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return sum(size for address, size in storages.items() if address not in weights) // 2


def _free_memory() -> int:
    """Bytes of free main memory; 4 GiB where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 4096 * MIB


def _gmacs(model: nn.Module, input_size: tuple[int, int, int]) -> float | None:
    """Billions of multiply-accumulates of one image; None for a model that does not run without data."""
    try:
        return count_macs(model, input_size) / 1e9
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError):
        return None


def _published(name: str) -> dict[str, Any]:
    if name not in visionattn.list_models():
        return {}
    known = visionattn.info(name)
    return {"top1": known.top1, "top1_size": known.input_size[-1]}


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _check_positive(name: str, values: Sequence[int]) -> None:
    for value in values:
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} holds {value!r}; each must be a whole number of at least 1")
