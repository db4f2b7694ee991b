# SPDX-License-Identifier: Apache-2.0
"""What there is: models, mixers, this installation."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import json
import sys
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from visionattn.cli._common import DISTRIBUTIONS, EXTRAS, advice, app, print_grid, print_table, user_errors

ZOO_COLUMNS = ["model", "params", "GFLOPs", "top-1, %", "box/mask AP", "mIoU", "input", "paper"]


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
    print_grid(title, [*ZOO_COLUMNS[:-1], "arXiv"], cells)
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
    print_table("visionattn doctor", rows)
    for extra, modules in missing.items():
        typer.echo(f'not installed: {", ".join(modules)}; to add: pip install "visionattn[{extra}]"')


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
    name = model["name"] if model["library"] == "visionattn" else f"{model['name']} ({model['library']})"
    return [name, *shown, size, f"{model['paper']} (arXiv:{model['arxiv']})"]


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
