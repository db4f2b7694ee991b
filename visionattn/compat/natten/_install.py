# SPDX-License-Identifier: Apache-2.0
"""`import natten` for code that can't be changed."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from visionattn.compat.natten import _version

PACKAGE = "visionattn.compat.natten"
SUBMODULES = ("context", "functional", "modules")


class _Distribution(importlib.metadata.Distribution):
    """Answers `importlib.metadata.version("natten")`, by which transformers tells whether there is one."""

    def read_text(self, filename: str) -> str | None:
        if filename != "METADATA":
            return None
        return f"Metadata-Version: 2.1\nName: natten\nVersion: {_version.current}\n"

    def locate_file(self, path: str | os.PathLike[str]) -> Path:
        return Path(__file__).parent / path


class _Finder(importlib.metadata.DistributionFinder):
    """Finds `_Distribution`, and no modules: those are in `sys.modules` already."""

    def find_spec(self, *args: object) -> None:
        return None

    def find_distributions(
        self, context: importlib.metadata.DistributionFinder.Context | None = None
    ) -> Iterable[importlib.metadata.Distribution]:
        return [_Distribution()] if context is None or context.name in (None, "natten") else []


_finder = _Finder()


def install(version: str = _version.NEWEST) -> bool:
    """Makes `import natten` give this package, unless a real NATTEN is there, which is left alone.

    Call it before the code that imports natten is imported. `natten.functional`, `natten.context` and
    `natten.modules` come with it, and `importlib.metadata` knows of it.

    Args:
        version: The release to be taken for, from 0.14 on: what `natten.__version__` says, and what decides where
            the releases contradict each other: whether modules that are given nothing but `dim` or a position pad
            small maps (before 0.20) and have a relative position bias (before 0.17).

    Returns:
        Whether `import natten` gives this package now.

    Raises:
        ValueError: The version is none, or before 0.14.
    """
    _version.parse(version)
    ours = importlib.import_module(PACKAGE)
    if "natten" in sys.modules:
        if sys.modules["natten"] is not ours:
            return False
    elif importlib.util.find_spec("natten") is not None:
        return False
    _version.current = version
    sys.modules["natten"] = ours
    for name in SUBMODULES:
        sys.modules[f"natten.{name}"] = importlib.import_module(f"{PACKAGE}.{name}")
    if _finder not in sys.meta_path:
        sys.meta_path.append(_finder)
    return True


def _uninstall() -> None:
    """Undoes `install`."""
    _version.current = _version.NEWEST
    if sys.modules.get("natten") is sys.modules[PACKAGE]:
        for name in ("natten", *(f"natten.{name}" for name in SUBMODULES)):
            del sys.modules[name]
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
