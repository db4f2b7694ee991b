# SPDX-License-Identifier: Apache-2.0
"""The part of `docs/dense.md` that the configs know.

    python -m visionattn.openmmlab._page docs/dense.md

rewrites what stands between `<!-- configs: coco -->` and `<!-- /configs -->`.
"""

import ast
import re
import sys
from pathlib import Path

from visionattn._files import replacing
from visionattn.openmmlab.config import builtin_configs

BLOCK = re.compile(r"<!-- configs: (\w+) -->\n.*?<!-- /configs -->", re.DOTALL)
FIGURES = re.compile(r"Published: (.*?)\.(?:\s|$)", re.DOTALL)


def published(file: Path) -> str | None:
    """Published figures in the docstring of a config; None where there are none."""
    found = FIGURES.search(ast.get_docstring(ast.parse(file.read_text())) or "")
    return None if found is None else " ".join(found[1].split())


def table(folder: str) -> str:
    """Markdown table of the configs in a folder of `configs`."""
    files = {name: file for name, file in builtin_configs().items() if name.startswith(f"{folder}/")}
    rows = [f"| `{name}` | {published(file) or '–'} |" for name, file in files.items()]
    return "\n".join(["| config | published |", "|---|---|", *rows])


def render(page: str) -> str:
    """Page with its generated blocks brought up to date."""
    return BLOCK.sub(lambda m: f"<!-- configs: {m[1]} -->\n{table(m[1])}\n<!-- /configs -->", page)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        with replacing(path) as temporary:
            temporary.write_text(render(path.read_text()))
