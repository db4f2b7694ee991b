# SPDX-License-Identifier: Apache-2.0
"""What is known of models and mixers, kept in files: the command line lists it without importing PyTorch.

`python -m visionattn.models._card` rewrites the files; tests hold them equal to the registry.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visionattn._files import replacing

PATH = Path(__file__).with_name("zoo.json")
MIXERS_PATH = Path(__file__).with_name("mixers.json")


def read_index(pattern: str = "*") -> list[dict[str, Any]]:
    """Fields of `ModelInfo` of every set of weights whose `name.tag` matches.

    Args:
        pattern: Shell pattern; `va_` may be left out.
    """
    rows = json.loads(PATH.read_text(encoding="utf-8"))
    return [row for row in rows if any(fnmatch.fnmatch(row["name"], f"{start}{pattern}") for start in ("", "va_"))]


def read_mixers(pattern: str = "*") -> list[dict[str, str]]:
    """Name, cost, paper and one sentence of every token mixer whose name matches the shell pattern."""
    rows = json.loads(MIXERS_PATH.read_text(encoding="utf-8"))
    return [row for row in rows if fnmatch.fnmatch(row["name"], pattern)]


def write_index(rows: Sequence[dict[str, Any]], mixers: Sequence[dict[str, str]]) -> None:
    """Replaces the files, one line for each set of weights and each mixer."""
    for path, entries in ((PATH, rows), (MIXERS_PATH, mixers)):
        lines = ",\n".join(json.dumps(row, ensure_ascii=False, default=dict) for row in entries)
        with replacing(path) as temporary:
            temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
