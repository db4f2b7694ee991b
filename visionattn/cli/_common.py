# SPDX-License-Identifier: Apache-2.0
"""What the commands share: the application, options, errors, tables."""

from __future__ import annotations

import functools
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
    "scipy": "viz",
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


def parse_size(text: str | None, default: Sequence[int]) -> tuple[int, int, int]:
    """`(channels, height, width)` of "224" or "224x288", or the default where `text` is None."""
    channels, height, width = default
    if text is not None:
        parts = text.lower().split("x")
        if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
            raise ValueError(f"--size {text!r} must look like 224 or 224x288 (height x width)")
        height, width = int(parts[0]), int(parts[-1])
    return channels, height, width


def whole(option: str, text: str) -> int:
    if not text.strip().isdigit():
        raise ValueError(f"{option}: {text!r} must be a whole number; several are separated by commas")
    return int(text)


def is_config(name: str) -> bool:
    return "/" in name or name.endswith(".py")


def classifier_of_config(cfg: Any, checkpoint: Path | None, size: str | None) -> tuple[Any, Any]:
    from visionattn.openmmlab import graph_info, tasks

    network = tasks.load_classifier(cfg, checkpoint)
    return network, graph_info.describe_classifier(cfg, parse_size(size, tasks.input_size(cfg)), checkpoint)


def classifier_by_name(name: str, checkpoint: Path | None, pretrained: bool, size: str | None) -> tuple[Any, Any]:
    import visionattn
    from visionattn.export.classifiers import describe_model

    network = visionattn.create_model(name, pretrained=pretrained)
    if checkpoint is not None:
        visionattn.load_checkpoint(network, checkpoint)
    info = describe_model(network, name)
    return network.eval(), info if size is None else info.with_(input_size=parse_size(size, info.input_size))


def print_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table, highlight=False, markup=False)


def print_grid(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for row in rows:
        table.add_row(*row)
    Console().print(table, highlight=False, markup=False)
