# SPDX-License-Identifier: Apache-2.0
"""Model cards: the part of `docs/models/*.md` that the registry knows.

    python -m visionattn.models._card docs/models/*.md

rewrites the generated blocks of these files, which stand between `<!-- card: FAMILY -->` and `<!-- /card -->`, and the
index of the zoo that the command line lists.
"""

import dataclasses
import inspect
import os
import re
import sys
from pathlib import Path
from typing import Any

from visionattn._index import write_index
from visionattn.layers import MIXERS, pick

from ._registry import FAMILIES, SERVED, ModelInfo, info, list_models

BLOCK = re.compile(r"<!-- card: (\w+) -->\n.*?<!-- /card -->", re.DOTALL)


def card(family: str) -> str:
    """Markdown facts of a family: papers, licence, and a table of its models with published figures.

    Raises:
        ValueError: If there is no such family.
    """
    facts = pick("family", family, {**FAMILIES, **SERVED})
    papers = ", ".join(f"[{p.title}]({p.url})" for p in facts.papers)
    rows = [row for name in list_models(tags=True, served=True) if (row := info(name)).family == family]
    measured = "Figures are the authors'; they were not measured again."
    if not any(row.urls[0] for row in rows):
        measured = "No weights were published."
    lines = [
        f"**{facts.title}.** Paper: {papers}. Reference: <{facts.origin}>. Licence of code and weights: "
        f"{facts.license.upper() or 'none named'}.",
        "",
        "| model | image | parameters, M | multiply-adds, G | top-1 | top-5 | weights |",
        "|---|---|---|---|---|---|---|",
        *map(_table_row, rows),
        "",
        measured + ("" if facts.counts_attention else " Their multiply-adds leave the attention products out."),
    ]
    lines += _dense_table(rows)
    said = {note for row in rows for note in (row.note, row.gflops_differ, row.params_differ)}
    notes = sorted(note for note in said if note is not None)
    return "\n".join([*lines, *(f"\n{note}." for note in notes)])


def _dense_table(rows: list[ModelInfo]) -> list[str]:
    """Results of detectors and segmentors, where there are any."""
    results = [(row, result) for row in rows for result in row.dense]
    if not results:
        return []
    lines = [
        "",
        "| backbone | method | COCO box AP | COCO mask AP | ADE20K mIoU | several scales |",
        "|---|---|---|---|---|---|",
    ]
    for row, result in results:
        figures = (result.box_ap, result.mask_ap, result.miou, result.miou_multi)
        cells = ["–" if figure is None else f"{figure:g}" for figure in figures]
        method = result.method if result.note is None else f"{result.method} ({result.note})"
        lines.append(f"| `{row.name}` | {method} | {' | '.join(cells)} |")
    return lines


def _table_row(row: ModelInfo) -> str:
    figures = (row.params_m, row.gflops, row.top1, row.top5)
    cells = ["–" if figure is None else f"{figure:g}" for figure in figures]
    weights = f"[{row.reference}]({row.urls[0]})" if row.urls[0] else f"{row.reference}, not published"
    return f"| `{row.name}` | {row.input_size[1]} | {' | '.join(cells)} | {weights} |"


def render(page: str) -> str:
    """Page with its generated blocks brought up to date."""
    return BLOCK.sub(lambda m: f"<!-- card: {m[1]} -->\n{card(m[1])}\n<!-- /card -->", page)


def index() -> list[dict[str, Any]]:
    """What `visionattn._index` keeps."""
    return [dataclasses.asdict(info(name)) for name in list_models(tags=True, served=True)]


def mixers() -> list[dict[str, str]]:
    """What `visionattn._index` keeps of the token mixers: their docstrings' first sentence, cost and paper."""
    rows = []
    for name, layer in MIXERS.items():
        text = inspect.getdoc(layer) or ""
        paper = re.search(r"^Paper: (.*?)\.?\s*(?:\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
        found = " ".join(paper[1].split()) if paper else ""
        identifier = re.search(r"\d{4}\.\d{5}", found)
        facts = {"name": name, "cost": getattr(layer, "cost", ""), "summary": " ".join(text.split("\n\n")[0].split())}
        rows.append({**facts, "paper": found, "arxiv": identifier[0] if identifier else ""})
    return rows


def main(paths: list[str]) -> None:
    """Rewrites the generated blocks of files in place, and the index."""
    write_index(index(), mixers())
    for path in map(Path, paths):
        draft = path.with_suffix(".tmp")
        draft.write_text(render(path.read_text()))
        os.replace(draft, path)


if __name__ == "__main__":
    main(sys.argv[1:])
