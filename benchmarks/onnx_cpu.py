# SPDX-License-Identifier: Apache-2.0
"""ONNX files of the zoo's small models: whether they are written, what stays free, how they agree, and their speed.

    python benchmarks/onnx_cpu.py [--models PATTERN ...] [--compile] [--rounds 5] [--again]

One model of each family: the first that has at most 37 million parameters; `--models` takes any. Each is exported at
its own size by `visionattn.export.export_onnx`, which checks the agreement on random images, and run by onnxruntime and
by PyTorch in turn, on one image and one thread. The clock is the process's processor time, which waiting for other jobs
does not lengthen. Rows are added to the file as they are measured; one that is there, of the same machine, is not
measured again without `--again`. `--markdown` prints the table of docs/onnx.md, where compiled times that were not
measured here are those of models_cpu.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import models_cpu
import onnxruntime
import torch

import visionattn
from visionattn._files import replacing
from visionattn.benchmarking import Settings, build, find_models, machine
from visionattn.export import export_onnx

OUTPUT = Path(__file__).parent / "results" / "onnx_cpu.json"
COLUMNS = ["model", "exported", "batch", "height, width", "MB", "difference", "ORT ms", "eager ms", "compiled ms"]
# Some networks of random weights are so ill-conditioned that PyTorch's own float32 is 1e-2 from its float64.
TOLERANCE = 1e-2
# What keeps a size fixed or a model out, by family, where the exporter's own words do not say it.
LIMITS: dict[str, str] = {}


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One model's row; what failed says so in `error`."""
    record: dict[str, Any] = {"model": name, "family": visionattn.info(name).family}
    model, size = build(name)
    model.eval()
    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            report = export_onnx(model, path, size, tolerance=TOLERANCE)
            record |= {
                "size": list(report.input_size),
                "dynamic_batch": report.dynamic_batch,
                "dynamic_size": report.dynamic_size,
                "fixed_because": report.fixed_because,
                "opset": report.opset,
                "difference": float(f"{report.max_relative_difference:.2g}"),
                "mb": round(path.stat().st_size / 1e6, 1),
                "export_s": round(time.perf_counter() - start, 1),
            }
            record |= latencies(model, path, size, options)
    except Exception as error:  # whatever an export fails with is what the row says
        record["error"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:240]}"
    return record


def latencies(
    model: torch.nn.Module, path: Path, size: Sequence[int], options: argparse.Namespace
) -> dict[str, float | int]:
    """Median milliseconds of each side for one image, in turns."""
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = session_options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), session_options, providers=["CPUExecutionProvider"])
    images = torch.randn(1, *size)
    fed = {"images": images.numpy()}
    runs: dict[str, Callable[[], object]] = {
        "ort": lambda: session.run(None, fed),
        "eager": lambda: model(images),
    }
    if options.compile:
        compiled: Any = torch.compile(model, dynamic=False)
        runs["compiled"] = lambda: compiled(images)
    with torch.inference_mode():
        for run in runs.values():
            run()
        times = models_cpu.interleaved(runs, time.process_time, options.rounds, options.seconds)
    found: dict[str, float | int] = {f"{key}_ms": round(statistics.median(t), 1) for key, t in times.items()}
    ratios = [a / b for a, b in zip(times["ort"], times["eager"], strict=True)]
    return {**found, "ratio": round(statistics.median(ratios), 3), "rounds": len(ratios)}


def read(path: Path, here: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows of a file by model; none where they are of another machine, whose figures don't compare."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text())
    if any(content["machine"].get(fact) != here[fact] for fact in ("device", "threads", "torch", "onnxruntime")):
        print(f"{path} is of another machine or other versions, and is written anew")
        return {}
    return {row["model"]: row for row in content["records"]}


def write(path: Path, here: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"machine": here, "records": list(rows)}, indent=1) + "\n")


def compiled_models(here: Mapping[str, Any]) -> dict[str, float]:
    """Milliseconds for one image of the compiled models that models_cpu.py measured on the same machine."""
    if not models_cpu.OUTPUT.exists():
        return {}
    content = json.loads(models_cpu.OUTPUT.read_text())
    if any(content["machine"].get(fact) != here[fact] for fact in ("device", "threads", "torch")):
        return {}
    rows = (row for row in content["records"] if row["compiled"] and row["batch"] == 1)
    return {row["model"]: row["ms"] for row in rows if "ms" in row}


def cells(row: Mapping[str, Any], compiled_ms: float | None) -> list[str]:
    """A row for people."""
    if "error" in row:
        return [row["model"], f"no: {LIMITS.get(row['family']) or row['error']}", *["–"] * (len(COLUMNS) - 2)]
    because = LIMITS.get(row["family"]) or row["fixed_because"]
    sides = "free" if row["dynamic_size"] else f"{row['size'][1]}x{row['size'][2]}: {because}"
    figures = [f"{row['mb']:.1f}", f"{row['difference']:.0e}", f"{row['ort_ms']:.0f}", f"{row['eager_ms']:.0f}"]
    compiled_ms = row.get("compiled_ms", compiled_ms)
    compiled = "–" if compiled_ms is None else f"{compiled_ms:.0f}"
    return [row["model"], "yes", "free" if row["dynamic_batch"] else "1", sides, *figures, compiled]


def markdown(rows: Sequence[Mapping[str, Any]], compiled: Mapping[str, float]) -> str:
    """The table of docs/onnx.md, and how many are not slower than eager PyTorch."""
    lines = [COLUMNS, ["---"] * 4 + ["---:"] * 5, *(cells(row, compiled.get(row["model"])) for row in rows)]
    timed = [row["ratio"] for row in rows if "ratio" in row]
    share = f"{sum(ratio <= 1 for ratio in timed)} of {len(timed)} are not slower in onnxruntime than in eager PyTorch."
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{share}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--models", nargs="+", help="names with * and ?; one small model of each family if none")
    parser.add_argument("--compile", action="store_true", help="time compiled models too; minutes a model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="no new round after this time")
    parser.add_argument("--again", action="store_true", help="measure rows that are there")
    parser.add_argument("--markdown", action="store_true", help="print the table, and measure nothing")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    here = machine(Settings(device="cpu")) | {"onnxruntime": onnxruntime.__version__, "clock": "processor time"}
    rows, compiled = read(options.output, here), compiled_models(here)
    if not options.markdown:
        for name in find_models(options.models) if options.models else models_cpu.small_models():
            if name in rows and not options.again:
                continue
            rows[name] = measure(name, options)
            write(options.output, here, list(rows.values()))
            print(" | ".join(cells(rows[name], compiled.get(name))), flush=True)
    print(markdown(list(rows.values()), compiled))


if __name__ == "__main__":
    main()
