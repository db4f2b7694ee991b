# SPDX-License-Identifier: Apache-2.0
"""Configs by path or name, overrides from the command line, and data from a folder."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import os
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.registry import DATASETS, OPTIM_WRAPPERS
from mmengine.runner import Runner

from visionattn.data import recognise
from visionattn.data.shards import has_classes
from visionattn.openmmlab import structure
from visionattn.openmmlab.channels import fill_channels

# In a checkout the configs lie beside the package, in an installed wheel inside it.
_PACKAGE = Path(__file__).resolve().parents[1]
CONFIG_ROOTS = (_PACKAGE / "_configs", _PACKAGE.parent / "configs")

DATALOADERS = structure.DATALOADERS
RUNTIME = "_base_/dense_runtime.py"
SCOPES = {"detection": "mmdet", "segmentation": "mmseg"}


def find_config(name: str | os.PathLike[str]) -> Path:
    """File of a config that is given as a path, or by its name among those that come with the package.

    Args:
        name: A path, or a name such as `builtin/digits_nat-micro`, with or without `configs/` and `.py`; or a config of
            another package, such as `mmdet::retinanet/retinanet_r50_fpn_1x_coco.py`.

    Raises:
        ModuleNotFoundError: The other package is not installed.
        ValueError: No such config; the nearest names are offered.
    """
    path = Path(name)
    if path.is_file():
        return path
    if "::" in os.fspath(name):
        return _foreign_config(os.fspath(name))
    known = builtin_configs()
    wanted = path.with_suffix("").as_posix() if path.suffix == ".py" else path.as_posix()
    wanted = wanted.removeprefix("./").removeprefix("configs/")
    if wanted in known:
        return known[wanted]
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.4) or sorted(known)[:3]
    raise ValueError(f"config {os.fspath(name)!r} is neither a file nor a built-in name; nearest: {', '.join(near)}")


def _foreign_config(name: str) -> Path:
    scope, _, inner = name.partition("::")
    package = {"mmdet": "mmdet", "mmseg": "mmseg"}.get(scope)
    if package is None:
        raise ValueError(f"config {name!r}: {scope!r} must be 'mmdet' or 'mmseg'")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    root = Path(spec.origin).parent / ".mim" / "configs"
    path = root / Path(inner).with_suffix(".py")
    if not path.is_file():
        known = [file.relative_to(root).as_posix() for file in root.rglob("*.py")]
        near = difflib.get_close_matches(inner, known, n=3, cutoff=0.4)
        raise ValueError(f"config {name!r} does not exist; nearest: {', '.join(f'{scope}::{n}' for n in near)}")
    return path


def builtin_configs() -> dict[str, Path]:
    """Name and file of each config that comes with the package."""
    return {
        file.relative_to(root).with_suffix("").as_posix(): file
        for root in CONFIG_ROOTS
        if root.is_dir()
        for file in sorted(root.rglob("*.py"))
        if not any(part.startswith("_") for part in file.relative_to(root).parts)
    }


def load_config(
    name: str | os.PathLike[str], overrides: Sequence[str] = (), data: str | os.PathLike[str] | None = None
) -> Config:
    """Config with its overrides, on its own data or on a folder's.

    Args:
        name: A config's path or built-in name.
        overrides: `dotted.key=value` each; lists as `key=[a,b]`, positions in lists as `key.0.sub=value`.
        data: Data in place of the config's. For classification a folder of class folders, tar files or shards, or one
            with `train/` and `val/`, or `hfds/NAME`; for detection a folder like COCO's, for segmentation one like
            ADE20K's. The number of classes follows.

    Returns:
        The config. Channels that a neck or head leaves open are filled in, and detection and segmentation get the hooks
        of `configs/_base_/dense_runtime.py` where they have mmengine's.

    Raises:
        ValueError: Unknown config, unknown key or malformed override, each with the nearest names.
        FileNotFoundError: `data`, or a part of it, does not exist.
    """
    cfg = _unformatted(Config.fromfile(find_config(name)))
    task = task_of(cfg)
    if task in SCOPES:
        adopt_runtime(cfg, task)
    if overrides:
        values = parse_overrides(overrides)
        for key in values:
            _check_key(cfg, key)
        cfg.merge_from_dict(values)
    if task in SCOPES:
        if data is not None:
            structure.use_root(cfg, data, task)
        fill_channels(cfg)
    elif data is not None:
        use_folder(cfg, data)
    return cfg


def _unformatted(cfg: Config) -> Config:
    """The config, its text not laid out by yapf: where a line cannot be broken, as a long path, that takes seconds."""
    kept = {"filename": cfg.filename, "env_variables": cfg.env_variables}
    return Config(cfg._cfg_dict, cfg_text=cfg.text, format_python_code=False, **kept)


def task_of(cfg: Config) -> str:
    """What a config trains: "classification", "detection" or "segmentation".

    Raises:
        ValueError: It is none of them.
    """
    kind = str(cfg.get("model", {}).get("type", ""))
    if kind == "TimmClassifier":
        return "classification"
    scope = kind.partition(".")[0] if "." in kind else cfg.get("default_scope")
    task = {scope: task for task, scope in SCOPES.items()}.get(scope)
    if task is None:
        raise ValueError(
            f"config {cfg.filename}: model.type={kind!r} and default_scope={cfg.get('default_scope')!r} tell no task; "
            "use the model TimmClassifier, or default_scope='mmdet' or 'mmseg'"
        )
    return task


def adopt_runtime(cfg: Config, task: str) -> None:
    """Give a detection or segmentation config our hooks, TensorBoard and a seed, where it has mmengine's defaults.

    Hooks that a config has of its own stay.
    """
    file = next(root / RUNTIME for root in CONFIG_ROOTS if (root / RUNTIME).is_file())
    ours = Config.fromfile(file)
    cfg.setdefault("default_scope", SCOPES[task])
    imports = cfg.get("custom_imports") or {"imports": []}
    names = [imports["imports"]] if isinstance(imports["imports"], str) else list(imports["imports"])
    cfg.custom_imports = {**imports, "imports": [*names, *(n for n in ours.custom_imports.imports if n not in names)]}
    hooks = cfg.get("default_hooks") or {}
    own = hooks.get("checkpoint") or {}
    if own.get("type") in (None, "CheckpointHook"):
        cfg.default_hooks = {
            **{name: hook for name, hook in hooks.items() if name != "visualization"},
            **ours.default_hooks,
        }
        if not own.get("by_epoch", True) and own.get("interval"):
            cfg.default_hooks["checkpoint"]["interval"] = own["interval"]
    present = [hook["type"] for hook in cfg.get("custom_hooks") or ()]
    cfg.custom_hooks = [
        *(cfg.get("custom_hooks") or ()),
        *(hook for hook in ours.custom_hooks if hook["type"] not in present),
    ]
    backends = (cfg.get("visualizer") or {}).get("vis_backends") or ()
    drawn = "visualization" in (cfg.get("default_hooks") or {})  # by a hook that needs its own visualizer
    if not drawn and all(backend["type"] == "LocalVisBackend" for backend in backends):
        cfg.visualizer = ours.visualizer
    for name in ("env_cfg", "find_unused_parameters", "randomness"):
        cfg.setdefault(name, ours[name])


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


def use_folder(cfg: Config, data: str | os.PathLike[str]) -> None:
    """Let the loaders of `cfg` read images from `data`, and the model have as many classes.

    Args:
        cfg: A classification config, changed in place.
        data: Class folders, tar files, WebDataset shards or a Hugging Face dataset: see `visionattn.data.recognise`.
            Shards that don't name their classes have as many as the config's model. In training their order is
            `ShardSampler`'s where the config has mmengine's default.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is not what it should be.
    """
    source = recognise(data)
    if source["type"] == "ShardDataset" and not has_classes(source["root"]):
        source["classes"] = cfg.model.num_classes
    counts = set()
    for key in DATALOADERS:
        if cfg.get(key) is None:
            continue
        old = cfg[key].dataset
        kept = {name: old[name] for name in ("pipeline", "split", "seed", "on_bad_image") if name in old}
        cfg[key].dataset = {**source, **kept, "_delete_": True}
        cfg[key].dataset.pop("_delete_", None)
        if source["type"] == "ShardDataset" and key.startswith("train"):
            _read_in_runs(cfg[key])
        counts.add(len(DATASETS.build({**source, "pipeline": (), "split": kept.get("split", "train")}).classes))
    cfg.model.num_classes = max(counts)


def _read_in_runs(loader: Any) -> None:
    sampler = loader.get("sampler") or {}
    if sampler.get("type") == "DefaultSampler":
        loader.sampler = {**sampler, "type": "ShardSampler"}


def _runner_keys() -> set[str]:
    return _parameters(Runner.__init__) - {"cfg"}


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
    if _has(node, leaf) or leaf in names or (parents == ["optim_wrapper"] and leaf in _wrapper_arguments()):
        return
    # A key may be added to a component's arguments, unless it looks like a misspelling of one that is there.
    if not parents or isinstance(node, (list, tuple)) or difflib.get_close_matches(leaf, names, n=1, cutoff=0.8):
        raise ValueError(_unknown(key, key, leaf, names))


def _wrapper_arguments() -> set[str]:
    """Arguments of all optimizer wrappers, as their type may be changed beside them."""
    wrappers = OPTIM_WRAPPERS.module_dict.values()
    return {name for wrapper in wrappers for part in wrapper.__mro__ for name in _parameters(part.__init__)}


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self", "args", "kwargs"}


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
