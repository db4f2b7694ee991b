# SPDX-License-Identifier: Apache-2.0
"""Studies: every config of a folder trained, measured and put into one table, so that its mixers can be compared."""

from __future__ import annotations

import csv
import dataclasses
import gc
import json
import multiprocessing
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from visionattn import benchmarking
from visionattn._files import replacing
from visionattn._memory import peak_bytes
from visionattn.models._macs import count_macs
from visionattn.openmmlab import tasks
from visionattn.openmmlab.config import builtin_configs, load_config, task_of

SIZES = (224, 512, 1024)
RESULT_FILE, STUDY_FILE, ERROR_FILE = "result.json", "study.json", "error.txt"
ROUNDS, ROUND_SECONDS = 9, 1.0
MIB = 2**20
QUIET = ("ProgressHook",)

Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a study's figures depend on, besides the configs.

    Args:
        sizes: Sides of the square images that cost is measured for, in pixels.
        data: Data in place of the configs', as for training.
        overrides: `dotted.key=value` each, for every config.
        device: Where latency and memory are measured, as `torch.device` takes it.

    Raises:
        ValueError: A size is not positive, or the device is not there.
    """

    sizes: Sequence[int] = SIZES
    data: str | None = None
    overrides: Sequence[str] = ()
    device: str = benchmarking.Settings.device

    def __post_init__(self) -> None:
        if not self.sizes or any(not isinstance(size, int) or size < 1 for size in self.sizes):
            raise ValueError(f"sizes={list(self.sizes)} must be one or more whole numbers of at least 1")
        benchmarking.Settings(device=self.device)


def run_study(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: Settings | None = None,
    again: bool = False,
    processes: int = 1,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Train and measure every config of a folder; results of earlier runs are kept, interrupted training goes on.

    Each config gets a folder of its own in `output`, with what training leaves and `result.json`. All are trained
    first, so that nothing else runs while cost is measured. `study.json`, `study.csv` and `study.md` are written anew
    with each result.

    Args:
        folder: Folder of configs, or the common beginning of built-in names: `builtin/mixers`.
        output: Folder of the study.
        settings: What is measured, and on which data.
        again: Train and measure also what `output` has results of.
        processes: Configs that are trained at a time, which share the threads.
        progress: Is told what is being done.

    Returns:
        One result a config: `name`, `mixer`, `cost`, `top1` and `nll` of the last epoch on the test data, `parameters`,
        `seconds` of training, and `sizes`: for each side `gmacs`, `latency_ms` (median of a forward pass of one image,
        with `latency_q1_ms` and `latency_q3_ms`) and `peak_mib`, memory of that pass above weights and image; or
        `error`, why there are no figures.

    Raises:
        ValueError: `processes` is not positive, there is no config, one does not train a classifier, or `output` holds
            a study with other settings.
    """
    if processes < 1:
        raise ValueError(f"processes={processes} must be at least 1")
    settings, output = settings or Settings(), Path(output)
    say = progress or (lambda text: None)
    files = find_study(folder)
    for name, file in files.items():
        if (task := task_of(load_config(file, settings.overrides))) != "classification":
            raise ValueError(f"config {name} is for {task}; a study compares classifiers")
    _check_settings(output, settings, again)
    results = [None if again else _earlier(output / name) for name in files]
    missing = [name for name, result in zip(files, results, strict=True) if result is None]
    _write_study([result for result in results if result is not None], settings, output)
    trained = dict(_train_all({name: files[name] for name in missing}, output, settings, again, processes, say))
    for position, name in enumerate(files):
        if name in trained:
            label = f"{missing.index(name) + 1} of {len(missing)}, {name}"
            say(f"{label}: measuring")
            results[position] = _measured(trained[name], files[name], output / name, settings)
        _write_study([result for result in results if result is not None], settings, output)
    return [result for result in results if result is not None]


def find_study(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Name and file of each config in a folder, or among the built-in ones below a name such as `builtin/mixers`.

    Raises:
        ValueError: There are none.
    """
    path = Path(folder)
    files = {file.stem: file for file in sorted(path.glob("*.py")) if not file.name.startswith("_")}
    if not files:
        start = path.as_posix().removeprefix("./").removeprefix("configs/").rstrip("/") + "/"
        files = {name.removeprefix(start): file for name, file in builtin_configs().items() if name.startswith(start)}
    if not files:
        raise ValueError(f"{os.fspath(folder)!r} is no folder of configs, nor do built-in names begin so")
    return files


def measure(model: nn.Module, side: int, device: torch.device) -> dict[str, float]:
    """Cost of one image's forward pass: `gmacs`, `latency_ms` with its quartiles, `peak_mib`.

    The pass under which memory is recorded is also the warm-up. Passes are repeated for a second, nine at most, one at
    least.

    Args:
        model: In evaluation mode, on `device`.
        side: Of the square image, in pixels.
        device: A CPU or a CUDA device.
    """
    image = torch.randn(1, 3, side, side, device=device)
    with torch.inference_mode():
        step = partial(model, image)
        peak = peak_bytes(step, device)
        times: list[float] = []
        while not times or (len(times) < ROUNDS and sum(times) < ROUND_SECONDS):
            times.append(_seconds(step, device))
    q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {
        "gmacs": count_macs(model, (3, side, side)) / 1e9,
        "latency_ms": 1e3 * median,
        "latency_q1_ms": 1e3 * q1,
        "latency_q3_ms": 1e3 * q3,
        "rounds": len(times),
        "peak_mib": peak / MIB,
    }


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _train_all(
    files: Mapping[str, Path], output: Path, settings: Settings, again: bool, processes: int, say: Progress
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and figures of training of each config, as they come."""
    jobs = {name: (name, file, output / name, settings, again) for name, file in files.items()}
    if processes == 1:
        for done, (name, job) in enumerate(jobs.items(), 1):
            say(f"{done} of {len(jobs)}, {name}: training")
            yield name, _trained(*job)
        return
    threads = max(1, torch.get_num_threads() // processes)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        say(f"training {len(jobs)} configs, {processes} at a time")
        waiting = {pool.submit(_trained, *job): name for name, job in jobs.items()}
        for done, future in enumerate(as_completed(waiting), 1):
            name = waiting[future]
            say(f"training: {done} of {len(jobs)} done, the last one {name}")
            try:
                yield name, future.result()
            except BrokenProcessPool as error:  # killed from outside, as for memory
                yield name, {"name": name, "config": str(files[name]), "error": f"its process ended: {error}"}


def _trained(name: str, file: Path, folder: Path, settings: Settings, again: bool) -> dict[str, Any]:
    """Figures of training one config; any error of it, which may be anyone's code, is its own."""
    result: dict[str, Any] = {"name": name, "config": str(file), "error": None}
    try:
        cfg = load_config(file, settings.overrides, settings.data)
        result |= {"model": cfg.model.name, **_mixer(cfg)}
        cfg.custom_hooks = [hook for hook in cfg.get("custom_hooks") or () if hook["type"] not in QUIET]
        finished = folder / "summary.json"
        if again or not finished.is_file():
            tasks.train(cfg, folder, False if again else "auto")
        summary = json.loads(finished.read_text())
        result |= {key: summary[key] for key in ("parameters", "seconds", "seed")}
        result |= {key: value for key, value in summary["last"].items() if key in ("epoch", "step", "top1", "nll")}
    except Exception as error:
        _fail(result, error, folder)
    gc.collect()  # ends the processes of the data loaders, which the runner's cycles keep
    return result


def _measured(result: dict[str, Any], file: Path, folder: Path, settings: Settings) -> dict[str, Any]:
    """A result with cost, also written to its folder; errors are its own."""
    if result["error"] is None:
        try:
            device = torch.device(settings.device)
            cfg = load_config(file, settings.overrides, settings.data)
            model = tasks.load_classifier(cfg, folder / "last.pth").to(device)
            result["sizes"] = {str(side): measure(model, side, device) for side in settings.sizes}
            (folder / ERROR_FILE).unlink(missing_ok=True)
        except Exception as error:
            _fail(result, error, folder)
    _write_json(result, folder / RESULT_FILE)
    return result


def _fail(result: dict[str, Any], error: Exception, folder: Path) -> None:
    """Keep the reason, in full in a file."""
    result["error"] = f"{type(error).__name__}: {(str(error).strip() or repr(error)).splitlines()[0]}"
    with replacing(folder / ERROR_FILE) as temporary:
        temporary.write_text(traceback.format_exc(), encoding="utf-8")


def _mixer(cfg: Config) -> dict[str, str | None]:
    """The mixer that a config is about, the last that its model names, and how its cost grows; None for none."""
    from visionattn._index import read_mixers

    kwargs: Mapping[str, Any] = cfg.model.get("kwargs") or {}
    named = kwargs.get("mixers", kwargs.get("mixer"))
    while isinstance(named, Sequence) and not isinstance(named, str) and named:
        named = named[-1]
    costs = {row["name"]: row["cost"] for row in read_mixers()}
    return {"mixer": named, "cost": costs.get(str(named))}


def _earlier(folder: Path) -> dict[str, Any] | None:
    """Result of an earlier run; None where there is none, or it is an error."""
    file = folder / RESULT_FILE
    result = json.loads(file.read_text()) if file.is_file() else None
    return None if result is None or result["error"] is not None else result


def _check_settings(output: Path, settings: Settings, again: bool) -> None:
    file = output / STUDY_FILE
    if again or not file.is_file():
        return
    earlier, now = json.loads(file.read_text())["settings"], _plain(settings)
    differing = [
        f"{key}={earlier.get(key)!r}, now {value!r}" for key, value in now.items() if earlier.get(key) != value
    ]
    if differing:
        raise ValueError(
            f"{output} holds a study with other settings ({'; '.join(differing)}); another folder keeps both, --again "
            "begins anew"
        )


def _plain(settings: Settings) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def _write_study(results: Sequence[dict[str, Any]], settings: Settings, output: Path) -> None:
    machine = benchmarking.machine(benchmarking.Settings(device=settings.device))
    _write_json({"settings": _plain(settings), "machine": machine, "results": list(results)}, output / STUDY_FILE)
    header, rows = columns(settings.sizes), [cells(result, settings.sizes) for result in results]
    with replacing(output / "study.csv") as temporary, temporary.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    ranked = sorted(rows, key=lambda row: (row[2] == "", -float(row[2] or 0)))
    lines = [header, ["---", "---", *["---:"] * (len(header) - 2)], *([cell or "–" for cell in row] for row in ranked)]
    with replacing(output / "study.md") as temporary:
        temporary.write_text("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n", encoding="utf-8")


def machine_name(settings: Settings) -> str:
    """Where a study's latency and memory are measured."""
    machine = benchmarking.machine(benchmarking.Settings(device=settings.device))
    return f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}"


def columns(sizes: Sequence[int]) -> list[str]:
    """Headings of a study's table."""
    figures = [f"{figure} {side}" for figure in ("GMACs", "ms", "MiB") for side in sizes]
    return ["mixer", "cost", "top-1, %", "params, k", *figures]


def cells(result: Mapping[str, Any], sizes: Sequence[int]) -> list[str]:
    """A result under those headings, with empty cells where nothing was measured."""

    def figure(key: str, side: int, text: str) -> str:
        value = result.get("sizes", {}).get(str(side), {}).get(key)
        return "" if value is None else text.format(value)

    formats = (("gmacs", "{:.3f}"), ("latency_ms", "{:.1f}"), ("peak_mib", "{:.1f}"))
    figures = [figure(key, side, text) for key, text in formats for side in sizes]
    top1 = f"{result['top1']:.2f}" if result.get("top1") is not None else ""
    parameters = f"{result['parameters'] / 1e3:.1f}" if result.get("parameters") is not None else ""
    return [str(result["name"]), result.get("cost") or "", top1, parameters, *figures]


def _write_json(value: Mapping[str, Any], path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
