# SPDX-License-Identifier: Apache-2.0
"""Training, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from visionattn.cli._common import Accelerate, Config, Data, Overrides, app, print_grid, print_table, user_errors

IMAGENET_COLUMNS = ["model", "labels", "top-1, %", "published", "top-5, %", "published", "images", "img/s", "peak MiB"]


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
    print_table("trained", rows)


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
    print_table("evaluated", rows)
    if "classes" in result:
        columns = list(next(iter(result["classes"].values())))
        cells = [[label, *(_figure(k, values[k]) for k in columns)] for label, values in result["classes"].items()]
        print_grid("each class", ["class", *columns], cells)


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
            print_table("predicted", [(p.source, p.summary()) for p in predictions])
        Console().print(f"{len(predictions)} predictions drawn in {output}", highlight=False)
        return
    known = [p.label == p.truth for p in predictions if p.truth is not None]
    title = f"{sum(known)} of {len(known)} right, by {checkpoint}" if known else f"predictions of {checkpoint}"
    draw_predictions(predictions, output, title=title)
    if images:
        print_table("predicted", [(p.source, f"{p.label}  {100 * p.confidence:.1f} %") for p in predictions])
    Console().print(f"{len(predictions)} predictions drawn in {output}", highlight=False)


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
        print_table("feature maps; there is nothing to draw", rows)
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
    print_table("predicted", rows)
    Console().print(f"{len(photos)} predictions drawn in {output}", highlight=False)


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
    print_grid(f"{results[0]['data']}, {results[0].get('device', settings.device)}", IMAGENET_COLUMNS, rows)
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
