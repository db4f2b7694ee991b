# SPDX-License-Identifier: Apache-2.0
"""The command line: `visionattn train | evaluate | predict | convert | export | benchmark | tune | zoo | doctor`."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    name="visionattn",
    help="Attention backbones of the vision literature: train, evaluate, export.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Module to import, and the extra that brings it.
EXTRAS = {
    "mmengine": "train",
    "albumentations": "train",
    "cv2": "train",
    "sklearn": "train",
    "skimage": "train",
    "tensorboard": "train",
    "webdataset": "train",
    "datasets": "hub",
    "matplotlib": "viz",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "export",
    "mmcv": "detection",
    "mmdet": "detection",
    "pycocotools": "detection",
    "mmseg": "segmentation",
    "ftfy": "segmentation",
}
DISTRIBUTIONS = {
    "cv2": "opencv-python-headless",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "mmcv": "mmcv-lite",
    "mmseg": "mmsegmentation",
}

BENCHMARK_COLUMNS = ["model", "size", "batch", "images/s", "ms", "quartiles", "peak MiB", "params", "GMACs"]
CALIBRATION_IMAGES = 256
IMAGENET_COLUMNS = ["model", "labels", "top-1, %", "published", "top-5, %", "published", "images", "img/s", "peak MiB"]
TUNE_COLUMNS = ["problem", "kernel", "static choice", "ms", "measured best", "ms", "ratio"]
ZOO_COLUMNS = ["model", "params", "GFLOPs", "top-1, %", "box/mask AP", "mIoU", "input", "paper"]

Config = Annotated[str, typer.Argument(help="A config file, or the name of a built-in one: builtin/digits_nat-micro")]
Checkpoint = Annotated[Path, typer.Argument(help="A checkpoint that training wrote, such as best.pth")]
Data = Annotated[
    str | None,
    typer.Option(
        help="Data in place of the config's: a folder of class folders, tar files or WebDataset shards, or hfds/NAME; "
        "or a folder like COCO's or ADE20K's"
    ),
]
Accelerate = Annotated[
    bool, typer.Option("--accelerate", help="Let our ops compute the window or halo attention of a model of timm")
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values to change in the config")]


def user_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turn an error that the user can act on into its message and exit code 1; VISIONATTN_DEBUG=1 shows where."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (ArithmeticError, ImportError, OSError, TypeError, ValueError) as error:
            if os.environ.get("VISIONATTN_DEBUG"):
                raise
            sys.stderr.write(f"visionattn: error: {advice(error)}\n")
            raise typer.Exit(1) from None

    return wrapped


def advice(error: Exception) -> str:
    """Message of an error; a missing optional part gets the pip line that adds it."""
    module = (getattr(error, "name", None) or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and module in EXTRAS:
        return f'this needs {module}, which is not installed: pip install "visionattn[{EXTRAS[module]}]"'
    if isinstance(error, ImportError) and "libGL" in str(error):
        # mmengine asks for OpenCV's desktop build, which needs a graphics library that servers lack.
        return f"{error}: pip install --force-reinstall --no-deps opencv-python-headless"
    text = str(error)
    if text.startswith("Caught ") and "Original Traceback" in text:  # from a data loader's worker process
        text = text.strip().splitlines()[-1]
    return text or type(error).__name__


@app.command()
@user_errors
def train(
    config: Config,
    overrides: Overrides = None,
    data: Data = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the last checkpoint in the work dir; '--resume auto': if it has one"),
    ] = False,
    work_dir: Annotated[Path | None, typer.Option(help="Folder of the run; work_dirs/<config> by default")] = None,
    launcher: Annotated[
        str, typer.Option(help="'pytorch': one process a GPU, or --processes; 'slurm': those that srun started")
    ] = "none",
    processes: Annotated[int | None, typer.Option(help="Processes of --launcher pytorch; one a GPU by default")] = None,
    restarts: Annotated[
        int, typer.Option(help="How often --launcher pytorch begins again, from the last checkpoint, after a failure")
    ] = 0,
    scale_lr: Annotated[
        bool, typer.Option("--scale-lr", help="Scale the learning rate to the images of a step, linearly")
    ] = False,
    fsdp: Annotated[bool, typer.Option("--fsdp", help="Spread weights and optimizer over the processes")] = False,
    accelerate: Accelerate = False,
) -> None:
    """Train a model from a config; checkpoints, metrics and curves go to the work dir."""
    from visionattn.openmmlab import distributed, load_config, tasks

    overrides = list(overrides or ())
    folder = tasks.default_work_dir(config) if work_dir is None else work_dir
    if launcher == "pytorch" and not distributed.started(launcher):
        options = {"--data": data, "--work-dir": folder, "--launcher": launcher}
        switches = {"--resume": resume, "--scale-lr": scale_lr, "--fsdp": fsdp, "--accelerate": accelerate}
        given = [part for name, value in options.items() if value is not None for part in (name, str(value))]
        given += [name for name, value in switches.items() if value]
        code = distributed.hand_over(["train", config, *overrides, *given], processes, restarts)
        if code:
            typer.echo(f"visionattn: error: {distributed.ended_badly(folder)}", err=True)
        raise typer.Exit(code)
    if restarts and launcher != "pytorch":
        raise ValueError(f"--restarts {restarts} needs --launcher pytorch; Slurm restarts jobs by itself (--requeue)")
    goes_on: bool | str = resume
    if resume and "auto" in overrides:  # `--resume auto`: an option with or without a value is not typer's
        overrides.remove("auto")
        goes_on = "auto"
    cfg = load_config(config, overrides, data)
    if scale_lr:
        tasks.scale_learning_rate(cfg)
    if fsdp:
        cfg.model_wrapper_cfg = {**(cfg.get("model_wrapper_cfg") or {}), "type": "FullyShard"}
    summary = tasks.train(cfg, folder, goes_on, launcher, accelerate)
    if launcher != "none" and not distributed.is_main():
        return
    rows = [
        (f"{which} {_place(summary[which])}", _metrics(summary[which])) for which in ("last", "best") if summary[which]
    ]
    rows += [("parameters", f"{summary['parameters']:,}"), ("time", f"{summary['seconds']:.0f} s")]
    if summary["skipped_images"]:
        rows.append(
            ("skipped images", ", ".join(summary["skipped_images"][:5]) + f" ({len(summary['skipped_images'])})")
        )
    rows += [("checkpoints", ", ".join(summary["checkpoints"].values())), ("curves", summary["curves"])]
    _print_table("trained", rows)


@app.command()
@user_errors
def evaluate(
    config: Annotated[str, typer.Argument(help="A config file or built-in name; or 'imagenet', for any timm model")],
    checkpoint: Annotated[Path | None, typer.Argument(help="A checkpoint of training; none with 'imagenet'")] = None,
    overrides: Overrides = None,
    data: Data = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="JSON file, <checkpoint>_evaluation/metrics.json by default; a folder with imagenet"
        ),
    ] = None,
    accelerate: Accelerate = False,
    model: Annotated[str | None, typer.Option(help="imagenet: a model's name, with its tag if wanted")] = None,
    models: Annotated[str | None, typer.Option(help="imagenet: models, as 'va_nat_*,va_swin_*'")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="imagenet: a file, or a folder of files named as models; published if none")
    ] = None,
    labels: Annotated[str, typer.Option(help="imagenet: auto, folders or real (ReaL's labels)")] = "auto",
    tta: Annotated[bool, typer.Option("--tta", help="imagenet: average with the mirror image")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="imagenet: calculate in bfloat16")] = False,
    batch: Annotated[int, typer.Option(help="imagenet: images a step")] = 64,
    workers: Annotated[int, typer.Option(help="imagenet: processes that load images")] = 4,
    device: Annotated[str | None, typer.Option(help="imagenet: cpu, cuda or cuda:N; a GPU where there is one")] = None,
    again: Annotated[bool, typer.Option("--again", help="imagenet: measure also what the output folder has")] = False,
) -> None:
    """Measure a checkpoint on the config's test data; or any timm model on ImageNet: evaluate imagenet --model NAME."""
    if config == "imagenet":
        if checkpoint is not None or overrides or accelerate:
            raise ValueError("evaluate imagenet takes options alone: --model NAME --data DIR [--weights FILE]")
        if (model is None) == (models is None) or data is None:
            raise ValueError("evaluate imagenet needs --data DIR, and either --model NAME or --models PATTERNS")
        names = [model] if model is not None else [part for part in str(models).split(",") if part]
        options: dict[str, Any] = {"labels": labels, "tta": tta, "bf16": bf16, "batch": batch, "workers": workers}
        if device is not None:
            options["device"] = device
        _evaluate_imagenet(names, data, weights, output or Path("work_dirs", "imagenet_evaluation"), options, again)
        return
    given = {"--model": model, "--models": models, "--weights": weights, "--tta": tta, "--bf16": bf16}
    if any(given.values()):
        raise ValueError(f"{', '.join(name for name, value in given.items() if value)}: for 'evaluate imagenet' only")
    if checkpoint is None:
        raise ValueError("evaluate needs CONFIG and CHECKPOINT, or 'imagenet' and --model NAME")
    from visionattn.openmmlab import load_config, tasks

    target = checkpoint.with_name(f"{checkpoint.stem}_evaluation") / "metrics.json" if output is None else output
    result = tasks.evaluate(load_config(config, overrides or (), data), checkpoint, target, accelerate)
    rows = [(name, _figure(name, value)) for name, value in result["metrics"].items()]
    rows += [
        ("images", str(result["images"])),
        ("checkpoint", f"{checkpoint} ({_place(result)})"),
        ("file", str(target)),
    ]
    _print_table("evaluated", rows)
    if "classes" in result:
        columns = list(next(iter(result["classes"].values())))
        cells = [[label, *(_figure(k, values[k]) for k in columns)] for label, values in result["classes"].items()]
        _print_grid("each class", ["class", *columns], cells)


@app.command()
@user_errors
def predict(
    config: Annotated[str | None, typer.Argument(help="A config file or built-in name; none with --onnx")] = None,
    checkpoint: Annotated[Path | None, typer.Argument(help="A checkpoint of training; none with --onnx")] = None,
    images: Annotated[list[Path] | None, typer.Argument(help="Image files; samples of the test data if none")] = None,
    data: Data = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture to write")] = Path("predictions.png"),
    samples: Annotated[
        int | None, typer.Option(min=1, help="Number of test images where no file is given; 24, or 6 with objects")
    ] = None,
    score: Annotated[float, typer.Option(help="Least confidence of a detector's objects")] = 0.3,
    onnx: Annotated[
        Path | None, typer.Option(help="An exported file in place of CONFIG and CHECKPOINT; all arguments are images")
    ] = None,
) -> None:
    """Draw a grid of images with what the model finds: classes, boxes and masks, or class maps."""
    if onnx is not None:
        given = [config, checkpoint, *(images or ())]
        _predict_onnx(onnx, [Path(image) for image in given if image is not None], output, score)
        return
    if config is None or checkpoint is None:
        raise ValueError("predict needs CONFIG and CHECKPOINT, or --onnx FILE and images")
    from visionattn.openmmlab import load_config, tasks
    from visionattn.viz import DensePrediction, draw_dense, draw_predictions

    predictions: Any = tasks.predict(load_config(config, data=data), checkpoint, images or (), samples, score)
    if isinstance(predictions[0], DensePrediction):
        draw_dense(predictions, output, title=f"predictions of {checkpoint}")
        if images:
            _print_table("predicted", [(p.source, p.summary()) for p in predictions])
        Console().print(f"{len(predictions)} predictions drawn in {output}", highlight=False)
        return
    known = [p.label == p.truth for p in predictions if p.truth is not None]
    title = f"{sum(known)} of {len(known)} right, by {checkpoint}" if known else f"predictions of {checkpoint}"
    draw_predictions(predictions, output, title=title)
    if images:
        _print_table("predicted", [(p.source, f"{p.label}  {100 * p.confidence:.1f} %") for p in predictions])
    Console().print(f"{len(predictions)} predictions drawn in {output}", highlight=False)


@app.command()
@user_errors
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="The authors' file: .pth, .pt or .safetensors")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, .safetensors")],
    model: Annotated[
        str | None,
        typer.Argument(help="A model name, with its tag if it has several: va_nat_tiny; none keeps the file's names"),
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(help="Classes of the file's head; the model's own by default")
    ] = None,
) -> None:
    """Write a published checkpoint in our names, every entry in its place; without MODEL, a file's tensors alone."""
    from visionattn.models import convert_checkpoint, keep_tensors

    if model is None:
        entries = keep_tensors(checkpoint, output)
        rows = [("file", f"{output} ({output.stat().st_size / 1e6:.1f} MB)"), ("entries", f"{len(entries)}")]
        _print_table("tensors kept, all else left out", rows)
        return
    entries = convert_checkpoint(checkpoint, model, output, num_classes).state_dict()
    rows = [
        ("file", f"{output} ({output.stat().st_size / 1e6:.1f} MB)"),
        ("entries", f"{len(entries)}, {sum(t.numel() for t in entries.values()):,} numbers"),
        ("to load it", f'timm.create_model("{model}", pretrained=True, pretrained_cfg_overlay=dict(file="{output}"))'),
    ]
    _print_table("converted", rows)


@app.command()
@user_errors
def export(
    model: Annotated[str, typer.Argument(help="A model name (va_nat_tiny), or a config")],
    checkpoint: Annotated[Path | None, typer.Argument(help="Weights; random or --pretrained ones if none")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write")] = Path("model.onnx"),
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Use the published weights of a model name")] = False,
    size: Annotated[str | None, typer.Option(help="Image size as 224 or 224x288; the model's own by default")] = None,
    fixed_size: Annotated[bool, typer.Option("--fixed-size", help="Fix height and width")] = False,
    opset: Annotated[int, typer.Option(help="ONNX operator set")] = 20,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the report as JSON")] = None,
    features: Annotated[bool, typer.Option("--features", help="Feature maps in place of logits")] = False,
    class_map: Annotated[bool, typer.Option("--class-map", help="A segmentor's classes in place of logits")] = False,
    float16: Annotated[bool, typer.Option("--float16", help="Weights and activations in half precision")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Static 8-bit quantisation; needs --calibration")] = False,
    calibration: Annotated[Path | None, typer.Option(help="Folder of at least 16 images, for --int8")] = None,
    with_preprocessing: Annotated[
        bool, typer.Option("--with-preprocessing", help="Normalise inside: pixels of 0 to 255 in")
    ] = False,
    layout: Annotated[str, typer.Option(help="NHWC or NCHW, of those pixels")] = "NHWC",
    input_dtype: Annotated[str, typer.Option("--input-type", help="uint8 or float32, of those pixels")] = "uint8",
) -> None:
    """Write an ONNX file, after both sides agreed on random images."""
    if float16 and int8:
        raise ValueError("--float16 and --int8 exclude each other")
    if int8 != (calibration is not None):
        raise ValueError("--int8 and --calibration DIR go together")
    photos = [] if calibration is None else _calibration_photos(calibration)
    from visionattn._files import replacing
    from visionattn.export import Preprocessing, export_onnx

    graph, info = _graph(model, checkpoint, pretrained, size, features, class_map)
    inside = None
    if with_preprocessing:
        inside = Preprocessing(info.mean, info.std, info.channel_order, layout.upper(), input_dtype)
        info = info.with_(with_preprocessing=True, layout=inside.layout, input_dtype=input_dtype)
    detector = "boxes" in info.outputs
    report = export_onnx(
        graph,
        output,
        info.input_size,
        dynamic_size=not fixed_size and not detector,
        dynamic_batch=not detector,
        opset=opset,
        outputs=info.outputs,
        preprocessing=inside,
        precision="float16" if float16 else "int8" if int8 else "float32",
        calibration=[] if calibration is None else _calibration_inputs(photos, info),
        info=info,
    )
    if json_file is not None:
        with replacing(json_file) as temporary:
            temporary.write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    _print_table("exported", _export_rows(report))


def _export_rows(report: Any) -> list[tuple[str, str]]:
    height_width = "free" if report.dynamic_size else f"fixed {report.input_size[1]}x{report.input_size[2]}"
    if report.fixed_because:
        height_width += f", as a free size failed: {report.fixed_because}"
    rows = [
        ("file", f"{report.path} ({Path(report.path).stat().st_size / 1e6:.1f} MB, opset {report.opset})"),
        ("outputs", ", ".join(report.outputs)),
        ("batch", "free" if report.dynamic_batch else "1"),
        ("height, width", height_width),
        ("checked on", ", ".join("x".join(map(str, shape)) for shape in report.checked)),
        ("largest relative difference", f"{report.max_relative_difference:.1e}"),
    ]
    if report.agreement is not None:
        figures = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in report.agreement.items())
        rows.append((f"{report.precision} beside float32", figures))
    return rows


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
    batches: list[Any] = ["auto" if part == "auto" else _whole("--batch", part) for part in batch.split(",")]
    sides = [_whole("--sizes", part) for part in sizes.split(",") if sizes]
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
    _print_grid(title, [BENCHMARK_COLUMNS[i] for i in shown], rows)
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
    _print_grid(f"tiles, {dtype}, batch {batch}", TUNE_COLUMNS, rows)
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
def zoo(
    pattern: Annotated[str, typer.Argument(help="Names to list, with * and ?")] = "*",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table")] = False,
    mixers: Annotated[bool, typer.Option("--mixers", help="List the token mixers that hosts take by name")] = False,
) -> None:
    """List the models: parameters, GFLOPs, published top-1, best published COCO AP and ADE20K mIoU, input, paper."""
    from visionattn._index import read_index

    if mixers:
        _list_mixers(pattern, as_json, as_markdown)
        return
    found = read_index(pattern)
    if not found:
        names = sorted({row["architecture"] for row in read_index()})
        near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
        raise ValueError(f"no model matches {pattern!r}; nearest: {', '.join(near) or 'visionattn zoo lists all'}")
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    rows = [_zoo_row(model) for model in found]
    if as_markdown:
        lines = [ZOO_COLUMNS, ["---"] + ["---:"] * 6 + ["---"], *rows]
        typer.echo("\n".join(f"| {' | '.join(line)} |" for line in lines))
        return
    # Terminals are narrow: the papers' titles stand below, once.
    title = f"{len(rows)} sets of weights (accuracies and costs as published)"
    cells = [[*row[:-1], model["arxiv"]] for row, model in zip(rows, found, strict=True)]
    _print_grid(title, [*ZOO_COLUMNS[:-1], "arXiv"], cells)
    for arxiv, title in {model["arxiv"]: model["paper"] for model in found}.items():
        typer.echo(f"arXiv:{arxiv}  {title}")


@app.command()
@user_errors
def doctor() -> None:
    """Show versions, devices, which kernels run here, and what is not installed."""
    import torch

    import visionattn
    from visionattn import kernels

    rows = [("python", sys.version.split()[0]), ("visionattn", visionattn.__version__)]
    rows += [(name, _version(name)) for name in ("torch", "timm", "torchvision", "triton", "numpy")]
    rows.append(("devices", ", ".join(_devices(torch))))
    for name, reason in kernels.available_backends().items():
        rows.append((f"backend {name}", "works" if reason is None else f"not here: {reason}"))
    rows.append(("mmcv's ops", _mmcv_ops()))
    missing: dict[str, list[str]] = {}
    for module, extra in EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            missing.setdefault(extra, []).append(module)
        else:
            rows.append((f"{extra}: {module}", _version(DISTRIBUTIONS.get(module, module))))
    _print_table("visionattn doctor", rows)
    for extra, modules in missing.items():
        typer.echo(f'not installed: {", ".join(modules)}; to add: pip install "visionattn[{extra}]"')


def parse_size(text: str | None, default: Sequence[int]) -> tuple[int, int, int]:
    """`(channels, height, width)` of "224" or "224x288", or the default where `text` is None."""
    channels, height, width = default
    if text is not None:
        parts = text.lower().split("x")
        if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
            raise ValueError(f"--size {text!r} must look like 224 or 224x288 (height x width)")
        height, width = int(parts[0]), int(parts[-1])
    return channels, height, width


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line with `arguments`, or the process's own."""
    app(args=None if arguments is None else list(arguments), prog_name="visionattn")


def _graph(
    name: str, checkpoint: Path | None, pretrained: bool, size: str | None, features: bool, class_map: bool
) -> tuple[Any, Any]:
    """Module to export, and what its file will say about itself, from a config or a model's name."""
    from visionattn.export import FeatureMaps

    if _is_config(name):
        if pretrained:
            raise ValueError("--pretrained goes with a model's name; a config says itself where its weights come from")
        from visionattn.openmmlab import load_config
        from visionattn.openmmlab.config import task_of

        cfg = load_config(name)
        task = task_of(cfg)
        if class_map and task != "segmentation":
            raise ValueError(f"--class-map is for segmentation; config {name} is for {task}")
        if task != "classification":
            if features:
                raise ValueError("--features goes with a model's name or a classification config")
            from visionattn.openmmlab import deploy

            sides = None if size is None else parse_size(size, (3, 0, 0))[1:]
            graph, info = deploy.load(cfg, checkpoint, sides, class_map)
            return graph, info.with_(outputs=graph.names)
        network, info = _classifier_of_config(cfg, checkpoint, size)
    else:
        if class_map:
            raise ValueError(f"--class-map is for a segmentation config; {name!r} is a model's name")
        network, info = _classifier_by_name(name, checkpoint, pretrained, size)
    if features:
        maps = FeatureMaps(network).eval()
        return maps, info.with_(task="features", outputs=maps.names)
    return network, info


def _classifier_of_config(cfg: Any, checkpoint: Path | None, size: str | None) -> tuple[Any, Any]:
    from visionattn.openmmlab import graph_info, tasks

    network = tasks.load_classifier(cfg, checkpoint)
    return network, graph_info.describe_classifier(cfg, parse_size(size, tasks.input_size(cfg)), checkpoint)


def _classifier_by_name(name: str, checkpoint: Path | None, pretrained: bool, size: str | None) -> tuple[Any, Any]:
    import visionattn
    from visionattn.export.classifiers import describe_model

    network = visionattn.create_model(name, pretrained=pretrained)
    if checkpoint is not None:
        visionattn.load_checkpoint(network, checkpoint)
    info = describe_model(network, name)
    return network.eval(), info if size is None else info.with_(input_size=parse_size(size, info.input_size))


def _calibration_photos(folder: Path) -> list[Any]:
    """Images below a folder, for quantisation; an error before any work where there are too few."""
    from visionattn.data.images import IMAGE_SUFFIXES, read_image
    from visionattn.export.precision import check_calibration

    if not folder.is_dir():
        raise FileNotFoundError(f"--calibration {folder} is not a folder")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    try:
        check_calibration(len(files))
    except ValueError as error:
        raise ValueError(f"--calibration {folder}: {error}") from None
    step = max(len(files) // CALIBRATION_IMAGES, 1)
    return [read_image(file) for file in files[::step][:CALIBRATION_IMAGES]]


def _calibration_inputs(photos: Sequence[Any], info: Any) -> list[Any]:
    """Photos as a graph takes them, all of its own size."""
    from visionattn.export.runtime import as_input, place

    if info.preparation is None:
        raise ValueError("--calibration: the config's test pipeline does not say how photos get their size")
    fixed = info.with_(dynamic_size=False, window=None)
    return [as_input(place(photo, fixed).pixels, info) for photo in photos]


def _predict_onnx(file: Path, images: Sequence[Path], output: Path, score: float) -> None:
    """Draw what an exported file finds. PyTorch is not imported, here or in what this calls."""
    if not images:
        raise ValueError("predict --onnx needs image files")
    from visionattn.data.images import read_image
    from visionattn.export.runtime import OnnxModel, summary
    from visionattn.viz import DensePrediction, Objects, Prediction, draw_dense, draw_predictions

    model = OnnxModel(file)
    photos = [(read_image(path), str(path)) for path in images]
    task, title = model.info.task, f"predictions of {file}"
    if task == "features":
        rows = [(source, summary(model.features(photo))) for photo, source in photos]
        _print_table("feature maps; there is nothing to draw", rows)
        return
    if task == "classification":
        found = [(photo, model.classify(photo), source) for photo, source in photos]
        labelled = [Prediction(photo, model.name(c.label), c.confidence, None, source) for photo, c, source in found]
        draw_predictions(labelled, output, title=title)
        rows = [(p.source, f"{p.label}  {100 * p.confidence:.1f} %") for p in labelled]
    else:
        drawn = []
        for photo, source in photos:
            predicted: Any
            if task == "segmentation":
                predicted = model.segment(photo)
            else:
                seen = model.detect(photo, score)
                predicted = Objects(seen.boxes, seen.labels, seen.scores, seen.masks)
            info = model.info
            drawn.append(
                DensePrediction(photo, predicted, model.classes, None, source, info.palette, info.ignore_index)
            )
        draw_dense(drawn, output, title=title)
        rows = [(p.source, p.summary()) for p in drawn]
    _print_table("predicted", rows)
    Console().print(f"{len(photos)} predictions drawn in {output}", highlight=False)


def _list_mixers(pattern: str, as_json: bool, as_markdown: bool) -> None:
    """Prints the token mixers that match, as `zoo` prints models."""
    from visionattn._index import read_mixers

    found = read_mixers(pattern)
    if not found:
        near = difflib.get_close_matches(pattern, [row["name"] for row in read_mixers()], n=3, cutoff=0.4)
        hint = ", ".join(near) or "visionattn zoo --mixers lists all"
        raise ValueError(f"no mixer matches {pattern!r}; nearest: {hint}")
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    elif as_markdown:
        rows = [[row["name"], row["cost"], row["summary"], row["paper"] or "–"] for row in found]
        lines = [["mixer", "cost", "what it is", "paper"], ["---"] * 4, *rows]
        typer.echo("\n".join(f"| {' | '.join(line)} |" for line in lines))
    else:
        title = f"{len(found)} token mixers (cost of N pixels)"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in ("mixer", "cost", "arXiv"):
            table.add_column(column, no_wrap=True)
        table.add_column("what it is")
        for row in found:
            table.add_row(row["name"], row["cost"], row["arxiv"] or "–", row["summary"])
        Console().print(table, highlight=False, markup=False)


def _zoo_row(model: dict[str, Any]) -> list[str]:
    results = model["dense"]
    detected = [result for result in results if result["box_ap"] is not None]
    found: dict[str, Any] = max(detected, key=lambda result: result["box_ap"], default={})
    segmented = max((r["miou"] for r in results if r["miou"] is not None), default=None)
    masks = "–" if found.get("mask_ap") is None else f"{found['mask_ap']:.1f}"
    figures = [
        (model["params_m"], "{:g} M"),
        (model["gflops"], "{:.1f}"),
        (model["top1"], "{:.1f}"),
        (found.get("box_ap"), "{:.1f}/" + masks),
        (segmented, "{:.1f}"),
    ]
    shown = ["–" if value is None else text.format(value) for value, text in figures]
    size = "x".join(map(str, model["input_size"][1:]))
    return [model["name"], *shown, size, f"{model['paper']} (arXiv:{model['arxiv']})"]


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


def _whole(option: str, text: str) -> int:
    if not text.strip().isdigit():
        raise ValueError(f"{option}: {text!r} must be a whole number; several are separated by commas")
    return int(text)


def _is_config(name: str) -> bool:
    return "/" in name or name.endswith(".py")


def _evaluate_imagenet(
    patterns: Sequence[str], data: str, weights: Path | None, output: Path, options: dict[str, Any], again: bool
) -> None:
    from visionattn import imagenet

    settings = imagenet.Settings(**options)
    one = len(patterns) == 1 and not any(letter in patterns[0] for letter in "*?[")
    if weights is not None and not weights.exists():
        raise FileNotFoundError(f"--weights {weights}: there is no such file or folder")
    if weights is not None and weights.is_file() and not one:
        raise ValueError(f"--weights {weights} is a file, which is one model's; give a folder of files for several")
    is_file = weights is not None and weights.is_file()
    names = imagenet.find_models(patterns, None if is_file else weights)
    with Console(stderr=True).status("starting") as status:
        results = imagenet.evaluate(names, data, output, weights, settings, again, status.update)
    rows = [[str(result["model"]), *_imagenet_row(result)] for result in results]
    _print_grid(f"{results[0]['data']}, {results[0].get('device', settings.device)}", IMAGENET_COLUMNS, rows)
    for result in results:
        if result["error"] is not None:
            typer.echo(f"{result['model']} was not measured: {result['error']}")
        elif result["unreadable"]:
            bad = result["unreadable"]
            typer.echo(f"{result['model']}: {len(bad)} unreadable images were left out: {', '.join(bad[:5])}")
    typer.echo(f"written: {output}")
    if all(result["error"] is not None for result in results):
        raise typer.Exit(1)


def _imagenet_row(result: dict[str, Any]) -> list[str]:
    figures = [
        (result.get("top1"), "{:.2f}"),
        (result["published_top1"], "{:.2f}"),
        (result.get("top5"), "{:.2f}"),
        (result["published_top5"], "{:.2f}"),
        (result.get("images"), "{}"),
        (result.get("images_per_second"), "{:.1f}"),
        (result.get("peak_mib"), "{:.0f}"),
    ]
    return [result.get("labels") or "–", *("–" if value is None else text.format(value) for value, text in figures)]


def _metrics(record: dict[str, Any]) -> str:
    shown = {key: value for key, value in record.items() if key.startswith(("top", "mIoU", "aAcc", "mAcc", "coco/"))}
    short = [key for key in shown if not key.startswith("coco/") or key.endswith(("mAP", "mAP_50"))]
    return ", ".join(f"{key} {_figure(key, shown[key])}" for key in short)


def _figure(name: str, value: float | None) -> str:
    """A metric for people to read; one that nothing was there to measure is a dash."""
    if value is None or (name.startswith("coco/") and value < 0):
        return "–"
    percent = name.startswith(("top", "mIoU", "aAcc", "mAcc", "IoU", "Acc"))
    return f"{value:.2f} %" if percent else f"{value:.3f}" if name.startswith("coco/") else f"{value:.4f}"


def _place(record: dict[str, Any]) -> str:
    """How far training was."""
    return f"step {record['step']}" if "step" in record else f"epoch {record['epoch']}"


def _print_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table, highlight=False, markup=False)


def _print_grid(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for row in rows:
        table.add_row(*row)
    Console().print(table, highlight=False, markup=False)


def _mmcv_ops() -> str:
    """Whose `mmcv._ext` mmdet and mmsegmentation call."""
    if importlib.util.find_spec("mmcv") is None:
        return "mmcv is not installed"
    try:
        from visionattn.openmmlab import mmcv_ext
    except ImportError as error:
        return f"not looked at: {advice(error)}"
    return "visionattn's, without a compiler" if mmcv_ext.install() else "compiled, or another package's"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices(torch: Any) -> list[str]:
    devices = [f"cpu ({torch.get_num_threads()} threads)"]
    devices += [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return devices + (["mps"] if torch.backends.mps.is_available() else [])


if __name__ == "__main__":
    main()
