# SPDX-License-Identifier: Apache-2.0
"""What models cost and what they look at."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from visionattn.cli._common import (
    Data,
    Overrides,
    app,
    classifier_by_name,
    classifier_of_config,
    is_config,
    print_grid,
    print_table,
    user_errors,
    whole,
)

BENCHMARK_COLUMNS = ["model", "size", "batch", "images/s", "ms", "quartiles", "peak MiB", "params", "GMACs"]
TUNE_COLUMNS = ["problem", "kernel", "static choice", "ms", "measured best", "ms", "ratio"]


@app.command()
@user_errors
def benchmark(
    models: Annotated[list[str], typer.Argument(help="Names of our models or timm's, with * and ?")],
    train: Annotated[bool, typer.Option("--train", help="Measure training steps instead of inference")] = False,
    sizes: Annotated[str, typer.Option(help="Image sizes, as 224,384; each model's own if empty")] = "",
    batch: Annotated[str, typer.Option(help="Images a step, as 1,8; 'auto' is the largest power of two")] = "auto",
    compile_models: Annotated[bool, typer.Option("--compile", help="Compile the models")] = False,
    accelerate: Annotated[
        bool, typer.Option("--accelerate", help="Measure models of timm also with attention by our ops")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; a GPU where there is one")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16; training runs under autocast")] = "float32",
    rounds: Annotated[int, typer.Option(help="Timed rounds; the models take turns in each")] = 9,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw published top-1 over throughput: FILE.png and .svg; FILE.json if no -o")
    ] = None,
    top1: Annotated[
        Path | None, typer.Option(help="CSV with the columns model and top1, for models of unknown accuracy")
    ] = None,
) -> None:
    """Measure speed, memory and cost of models, in turns, so that the machine's noise hits all alike."""
    if plot is not None:
        from visionattn.viz import draw_tradeoff

        if output is None:
            output = plot.with_suffix(".json")
    batches: list[Any] = ["auto" if part == "auto" else whole("--batch", part) for part in batch.split(",")]
    sides = [whole("--sizes", part) for part in sizes.split(",") if sizes]
    from visionattn import benchmarking

    accuracies = {} if top1 is None else benchmarking.read_accuracies(top1)
    settings = benchmarking.Settings(train=train, compile=compile_models, dtype=dtype, rounds=rounds)
    if device is not None:
        settings = dataclasses.replace(settings, device=device)
    with Console(stderr=True).status("starting") as status:
        results = benchmarking.benchmark(models, sides, batches, accelerate, settings, status.update)
    results = benchmarking.with_accuracies(results, accuracies)
    machine = benchmarking.machine(settings)
    title = f"{'training' if train else 'inference'}, {dtype}, {machine['device']}, torch {machine['torch']}"
    title += "; * accelerated" if accelerate else ""
    shown = [i for i, name in enumerate(BENCHMARK_COLUMNS) if name != "peak MiB" or settings.on_cuda]
    rows = [[_benchmark_row(result)[i] for i in shown] for result in results]
    print_grid(title, [BENCHMARK_COLUMNS[i] for i in shown], rows)
    for result in results:
        if result.error is not None:
            typer.echo(f"{result.model} was not measured: {result.error}")
    if output is not None:
        benchmarking.write_json(results, settings, output)
        typer.echo(f"written: {output}")
    if all(result.error is not None for result in results):
        raise typer.Exit(1)
    if plot is not None:
        drawn = benchmarking.comparable(results)
        files = draw_tradeoff(drawn, plot, title, benchmarking.families(drawn))
        typer.echo(f"drawn: {', '.join(map(str, files))}; {len(results) - len(drawn)} measurements have no accuracy")


@app.command()
@user_errors
def tune(
    models: Annotated[list[str], typer.Argument(help="Names of our models or timm's, with * and ?")],
    size: Annotated[int | None, typer.Option(help="Side of the images; each model's own by default")] = None,
    batch: Annotated[int, typer.Option(help="Images")] = 64,
    dtype: Annotated[str, typer.Option(help="bf16, fp16 or fp32")] = "bf16",
    top: Annotated[int, typer.Option(help="Candidates of each kernel that are measured")] = 12,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File; the kernels' own by default")] = None,
) -> None:
    """Measure which tiles of the local-attention kernels are fastest on this GPU, and keep them for later calls."""
    from visionattn import tuning
    from visionattn.kernels import tiles

    settings = tuning.Settings(size=size, batch=batch, dtype=dtype, top=top)
    found: list[Any] = []
    with Console(stderr=True).status("starting") as status:
        try:
            for outcome in tuning.tune(models, settings, output, status.update):
                found.append(outcome)
        except KeyboardInterrupt:
            typer.echo("stopped; what was finished is kept", err=True)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
    rows = [row for outcome in found for row in _tune_rows(outcome)]
    print_grid(f"tiles, {dtype}, batch {batch}", TUNE_COLUMNS, rows)
    rejected = [f"{outcome.key}: {reason}" for outcome in found for reason in outcome.rejected]
    if rejected:
        typer.echo(f"{len(rejected)} candidates were left out, such as {rejected[0]}")
    if found:
        path = tiles.cache_path() if output is None else output
        typer.echo(
            f"written: {path}" + ("" if output is None else f"; the kernels read it if {tiles.CACHE_VARIABLE} names it")
        )


@app.command()
@user_errors
def explain(
    model: Annotated[str, typer.Argument(help="A model name, ours or timm's, or a classification config")],
    image: Annotated[Path, typer.Argument(help="An image file; it is resized to the model's size, nothing is cut off")],
    checkpoint: Annotated[Path | None, typer.Option(help="Weights; random or --pretrained ones if none")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Use the published weights of a model name")] = False,
    pixel: Annotated[str | None, typer.Option(help="ROW,COLUMN in the image; its centre by default")] = None,
    target: Annotated[int | None, typer.Option(help="Class for Grad-CAM; the most probable one by default")] = None,
    size: Annotated[str | None, typer.Option(help="Image size as 224 or 224x288; the model's own by default")] = None,
    no_flow: Annotated[bool, typer.Option("--no-flow", help="Leave out attention flow, which takes longest")] = False,
    all_layers: Annotated[
        bool, typer.Option("--all-layers", help="Draw every layer, not the last of each stage alone")
    ] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture; the arrays go beside it, as .npz")] = Path(
        "explanation.png"
    ),
) -> None:
    """Draw where a model looks: attention of a pixel by layer and head, rollout, flow, Grad-CAM, receptive field."""
    place = None if pixel is None else _pixel(pixel)
    if pretrained and is_config(model):
        raise ValueError("--pretrained goes with a model's name; a config says itself where its weights come from")
    import numpy as np
    import torch
    from torch.nn.functional import interpolate

    from visionattn._files import replacing
    from visionattn.data.images import read_image
    from visionattn.explanation import explain as explain_model
    from visionattn.viz import draw_explanation

    photo = torch.from_numpy(read_image(image)).float().permute(2, 0, 1)[None]
    sides: Any = tuple(photo.shape[2:])
    if place is not None and not (place[0] < sides[0] and place[1] < sides[1]):
        last = f"{sides[0] - 1}, columns 0 to {sides[1] - 1}"
        raise ValueError(f"--pixel {pixel} lies outside of {image}: it has rows 0 to {last}")
    if is_config(model):
        from visionattn.openmmlab import load_config

        network, info = classifier_of_config(load_config(model), checkpoint, size)
    else:
        network, info = classifier_by_name(model, checkpoint, pretrained, size)
    _, height, width = info.input_size
    shown = interpolate(photo, (height, width), mode="bicubic", antialias=True).clamp(0, 255)
    mean, std = (torch.tensor(values)[:, None, None] for values in (info.mean, info.std))
    if place is not None:
        place = place[0] * height // sides[0], place[1] * width // sides[1]
    with Console(stderr=True).status("explaining"):
        found = explain_model(network, (shown - mean) / std, place, target, flow=not no_flow)
    chosen = range(len(found.layers)) if all_layers else None
    draw_explanation(found, shown[0].permute(1, 2, 0).numpy(), output, f"{model}, {image.name}", chosen)
    arrays = output.with_suffix(".npz")
    with replacing(arrays) as temporary:
        np.savez_compressed(temporary, **found.arrays())  # type: ignore[arg-type]
    label = info.classes[found.target] if info.classes else str(found.target)
    rows = [("class", f"{label}, {100 * found.probability:.1f} %"), ("files", f"{output}, {arrays}")]
    rows += [(layer.name, f"{layer.kind}: {layer.method}, heads {len(layer.maps)}") for layer in found.layers]
    print_table("explained", rows)


@app.command()
@user_errors
def study(
    configs: Annotated[str, typer.Argument(help="A folder of configs, or built-in ones: builtin/mixers")],
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the study")] = Path("study"),
    data: Data = None,
    sizes: Annotated[str, typer.Option(help="Sides of the images that cost is measured for")] = "224,512,1024",
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; a GPU where there is one")] = None,
    again: Annotated[bool, typer.Option("--again", help="Train and measure anew what the folder has")] = False,
    processes: Annotated[int, typer.Option(help="Configs that are trained at a time, without a GPU")] = 1,
) -> None:
    """Train and measure every config of a folder, and compare: accuracy, parameters, FLOPs, latency, peak memory."""
    sides = [whole("--sizes", part) for part in sizes.split(",")]
    from visionattn.openmmlab import study as studies
    from visionattn.viz import draw_study

    settings = studies.Settings(sizes=sides, data=data, overrides=overrides or ())
    if device is not None:
        settings = dataclasses.replace(settings, device=device)
    with Console(stderr=True).status("starting") as status:
        results = studies.run_study(configs, output, settings, again, processes, status.update)
    shown = [max(sides)]  # terminals are narrow; the files have all
    rows = [[cell or "–" for cell in studies.cells(result, shown)] for result in results]
    print_grid(f"study of {configs}", studies.columns(shown), rows)
    failed = [result for result in results if result["error"] is not None]
    for result in failed:
        typer.echo(f"{result['name']} failed: {result['error']}")
    files = [output / f"study.{suffix}" for suffix in ("md", "csv", "json")]
    if len(failed) < len(results):
        files.append(output / "study.png")
        draw_study(results, sides, files[-1], f"{configs}, {studies.machine_name(settings)}")
    typer.echo(f"written: {', '.join(map(str, files))}")
    if len(failed) == len(results):
        raise typer.Exit(1)


def _benchmark_row(result: Any) -> list[str]:
    size = "–" if result.input_size is None else "x".join(map(str, result.input_size[1:]))
    figures = [
        (result.batch, "{}"),
        (result.images_per_second, "{:.1f}"),
        (result.latency_ms, "{:.1f}"),
        (result.latency_q1_ms, f"{{:.1f}}–{result.latency_q3_ms or 0:.1f}"),
        (result.peak_mib, "{:.0f}"),
        (None if result.parameters is None else result.parameters / 1e6, "{:.1f} M"),
        (result.gmacs, "{:.2f}"),
    ]
    name = f"{result.model} *" if result.accelerated else result.model
    return [name, size, *("–" if value is None else text.format(value) for value, text in figures)]


def _tune_rows(outcome: Any) -> list[list[str]]:
    rows: list[list[str]] = []
    for kernel in outcome.static_ms | outcome.best_ms:
        cells = [
            (_tile(getattr(tiling, kernel)), f"{figures[kernel]:.4f}") if kernel in figures else ("not launched", "–")
            for tiling, figures in ((outcome.static, outcome.static_ms), (outcome.best, outcome.best_ms))
        ]
        both = kernel in outcome.static_ms and kernel in outcome.best_ms
        ratio = f"{outcome.static_ms[kernel] / outcome.best_ms[kernel]:.2f}" if both else "–"
        rows.append([outcome.key if not rows else "", kernel, *cells[0], *cells[1], ratio])
    return rows


def _tile(tile: Any) -> str:
    """Such as 1x7x7/1x13x13:2 16x64 w4 s2: tile, box and its parts, slots of queries and keys, warps, stages."""
    sides = ["x".join(map(str, side)) for side in (tile.tile, tile.box)]
    return f"{'/'.join(sides)}:{tile.pieces} {tile.rows}x{tile.columns} w{tile.warps} s{tile.stages}"


def _pixel(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2:
        raise ValueError(f"--pixel {text!r} must look like 100,150: row and column")
    return whole("--pixel", parts[0]), whole("--pixel", parts[1])
