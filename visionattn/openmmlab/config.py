# SPDX-License-Identifier: Apache-2.0
"""Configs by path or name, overrides from the command line, and data from a folder."""

from __future__ import annotations

import difflib
import inspect
import os
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.runner import Runner

from visionattn.data import ImageFolderDataset

# In a checkout the configs lie beside the package, in an installed wheel inside it.
_PACKAGE = Path(__file__).resolve().parents[1]
CONFIG_ROOTS = (_PACKAGE / "_configs", _PACKAGE.parent / "configs")

DATALOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def find_config(name: str | os.PathLike[str]) -> Path:
    """File of a config that is given as a path, or by its name among those that come with the package.

    Args:
        name: A path, or a name such as `builtin/digits_nat-micro`, with or without `configs/` and `.py`.

    Raises:
        ValueError: No such config; the nearest names are offered.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = builtin_configs()
    wanted = path.with_suffix("").as_posix() if path.suffix == ".py" else path.as_posix()
    wanted = wanted.removeprefix("./").removeprefix("configs/")
    if wanted in known:
        return known[wanted]
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.4) or sorted(known)[:3]
    raise ValueError(f"config {os.fspath(name)!r} is neither a file nor a built-in name; nearest: {', '.join(near)}")


def builtin_configs() -> dict[str, Path]:
    """Name and file of each config that comes with the package."""
    return {
        file.relative_to(root).with_suffix("").as_posix(): file
        for root in CONFIG_ROOTS
        if root.is_dir()
        for file in sorted(root.rglob("*.py"))
        if not file.name.startswith("_")
    }


def load_config(
    name: str | os.PathLike[str], overrides: Sequence[str] = (), data: str | os.PathLike[str] | None = None
) -> Config:
    """Config with its overrides, on its own data or on a folder's.

    Args:
        name: A config's path or built-in name.
        overrides: `dotted.key=value` each; lists as `key=[a,b]`, positions in lists as `key.0.sub=value`.
        data: A folder of class folders, or one with `train/` and `val/`, that replaces the config's data set. The
            number of classes follows.

    Raises:
        ValueError: Unknown config, unknown key or malformed override, each with the nearest names.
        FileNotFoundError: `data` does not exist.
    """
    cfg = Config.fromfile(find_config(name))
    if overrides:
        values = parse_overrides(overrides)
        for key in values:
            _check_key(cfg, key)
        cfg.merge_from_dict(values)
    if data is not None:
        use_folder(cfg, data)
    return cfg


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Values of `key=value` strings, read as numbers, booleans, lists and tuples where they look like it."""
    overrides = list(overrides)
    for item in overrides:
        key, equals, _ = item.partition("=")
        if not equals or not key or key.startswith("-"):
            raise ValueError(f"override {item!r} must have the form key=value")
    parser = ArgumentParser()
    parser.add_argument("--set", nargs="+", action=DictAction)
    return parser.parse_args(["--set", *overrides]).set


def use_folder(cfg: Config, root: str | os.PathLike[str]) -> None:
    """Replace the data sets of `cfg` by the class folders under `root`, and set the model's number of classes."""
    classes: tuple[str, ...] = ()
    for key in DATALOADERS:
        if cfg.get(key) is None:
            continue
        old = cfg[key].dataset
        kept = {name: old[name] for name in ("pipeline", "split", "seed", "on_bad_image") if name in old}
        cfg[key].dataset = {"type": "ImageFolderDataset", "root": str(root), **kept, "_delete_": True}
        cfg[key].dataset.pop("_delete_", None)
        classes = ImageFolderDataset(root, pipeline=(), split=kept.get("split", "train")).classes
    cfg.model.num_classes = len(classes)


def _runner_keys() -> set[str]:
    return set(inspect.signature(Runner.__init__).parameters) - {"self", "cfg"}


def _check_key(cfg: Config, key: str) -> None:
    """Raise ValueError unless every part of a dotted key but the last exists, and the last is no misspelling."""
    node: Any = cfg
    *parents, leaf = key.split(".")
    for depth, part in enumerate(parents):
        if not _has(node, part):
            raise ValueError(_unknown(key, ".".join(parents[: depth + 1]), part, _keys(node, depth == 0)))
        node = node[int(part)] if isinstance(node, (list, tuple)) else node[part]
    if not hasattr(node, "keys") and not isinstance(node, (list, tuple)):
        raise ValueError(f"override {key!r}: {'.'.join(parents)} is {node!r}, which has no keys")
    names = _keys(node, not parents)
    if _has(node, leaf) or leaf in names:
        return
    # A key may be added to a component's arguments, unless it looks like a misspelling of one that is there.
    if not parents or isinstance(node, (list, tuple)) or difflib.get_close_matches(leaf, names, n=1, cutoff=0.8):
        raise ValueError(_unknown(key, key, leaf, names))


def _has(node: Any, part: str) -> bool:
    if isinstance(node, (list, tuple)):
        return part.isdigit() and int(part) < len(node)
    return hasattr(node, "keys") and part in node


def _keys(node: Any, top: bool) -> list[str]:
    names = (
        [str(i) for i in range(len(node))] if isinstance(node, (list, tuple)) else list(getattr(node, "keys", list)())
    )
    return sorted({*names, *_runner_keys()} if top else names)


def _unknown(key: str, path: str, part: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(part, names, n=3, cutoff=0.4)
    hint = f"nearest: {', '.join(near)}" if near else f"there are: {', '.join(names)}"
    return f"override {key!r}: the config has no {path!r}; {hint}"
