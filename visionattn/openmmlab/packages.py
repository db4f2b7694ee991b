# SPDX-License-Identifier: Apache-2.0
"""mmengine's search for other packages' configs, `mmdet::…`, where setuptools no longer has `pkg_resources`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import mmengine.config.config
import mmengine.hub.hub
import mmengine.utils
import mmengine.utils.package_utils


def is_installed(package: str) -> bool:
    """Whether there is a package of this name, as pip or as Python knows it."""
    return _folder(package) is not None


def get_installed_path(package: str) -> str:
    """Folder of a package.

    Args:
        package: Its name, as pip or as Python knows it (`mmsegmentation`, `mmseg`).

    Raises:
        ModuleNotFoundError: If there is none of this name.
    """
    folder = _folder(package)
    if folder is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return str(folder)


def _folder(package: str) -> Path | None:
    for module in (package, *_modules(package)):
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:
            return Path(spec.origin).parent
    return None


def _modules(package: str) -> list[str]:
    """What Python imports of a package that pip knows."""
    try:
        return (importlib.metadata.distribution(package).read_text("top_level.txt") or "").split()
    except importlib.metadata.PackageNotFoundError:
        return []


def install() -> bool:
    """Replace mmengine's functions, which import `pkg_resources`, where there is no such module any more.

    Returns:
        Whether they are replaced.
    """
    if importlib.util.find_spec("pkg_resources") is not None:
        return False
    for module in (mmengine.utils.package_utils, mmengine.utils, mmengine.config.config, mmengine.hub.hub):
        for function in (is_installed, get_installed_path):
            if hasattr(module, function.__name__):
                setattr(module, function.__name__, function)
    return True
