# SPDX-License-Identifier: Apache-2.0
"""Files of weights and ONNX graphs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from visionattn.cli._common import (
    app,
    classifier_by_name,
    classifier_of_config,
    is_config,
    parse_size,
    print_table,
    user_errors,
)

CALIBRATION_IMAGES = 256


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
        print_table("tensors kept, all else left out", rows)
        return
    entries = convert_checkpoint(checkpoint, model, output, num_classes).state_dict()
    rows = [
        ("file", f"{output} ({output.stat().st_size / 1e6:.1f} MB)"),
        ("entries", f"{len(entries)}, {sum(t.numel() for t in entries.values()):,} numbers"),
        ("to load it", f'timm.create_model("{model}", pretrained=True, pretrained_cfg_overlay=dict(file="{output}"))'),
    ]
    print_table("converted", rows)


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
    print_table("exported", _export_rows(report))


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


def _graph(
    name: str, checkpoint: Path | None, pretrained: bool, size: str | None, features: bool, class_map: bool
) -> tuple[Any, Any]:
    """Module to export, and what its file will say about itself, from a config or a model's name."""
    from visionattn.export import FeatureMaps

    if is_config(name):
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
        network, info = classifier_of_config(cfg, checkpoint, size)
    else:
        if class_map:
            raise ValueError(f"--class-map is for a segmentation config; {name!r} is a model's name")
        network, info = classifier_by_name(name, checkpoint, pretrained, size)
    if features:
        maps = FeatureMaps(network).eval()
        return maps, info.with_(task="features", outputs=maps.names)
    return network, info


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
