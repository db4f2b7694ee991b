# SPDX-License-Identifier: Apache-2.0
"""Look-up by name, with an error that offers the nearest names."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


def pick(what: str, name: str, table: Mapping[str, T]) -> T:
    """Entry `name` of `table`.

    Raises:
        ValueError: If there is none; says what was looked for and offers the nearest names.
    """
    if name not in table:
        raise ValueError(unknown(what, name, table))
    return table[name]


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Message for a name that does not exist."""
    known = list(known)
    near = get_close_matches(str(name), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known[:12])}"
    return f"unknown {what} {name!r}; {hint}"
