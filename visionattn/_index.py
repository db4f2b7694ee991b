# SPDX-License-Identifier: Apache-2.0
"""What the registry knows of the zoo, kept in a file: the command line lists it without importing PyTorch.

`python -m visionattn.models._card` rewrites the file; a test holds it equal to the registry.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visionattn._files import replacing

PATH = Path(__file__).with_name("zoo.json")


def read_index(pattern: str = "*") -> list[dict[str, Any]]:
    """Fields of `ModelInfo` of every set of weights whose `name.tag` matches.

    Args:
        pattern: Shell pattern; `va_` may be left out.
    """
    rows = json.loads(PATH.read_text(encoding="utf-8"))
    return [row for row in rows if any(fnmatch.fnmatch(row["name"], f"{start}{pattern}") for start in ("", "va_"))]


def write_index(rows: Sequence[dict[str, Any]]) -> None:
    """Replaces the file, one line for each set of weights."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False, default=dict) for row in rows)
    with replacing(PATH) as temporary:
        temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
