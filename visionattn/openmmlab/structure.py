# SPDX-License-Identifier: Apache-2.0
"""COCO and ADE20K folders: given by one path, and looked at before any work."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

DATALOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")

COCO_TREE = """\
DIR/
  annotations/
    instances_train2017.json
    instances_val2017.json
  train2017/   the images
  val2017/"""
ADE20K_TREE = """\
DIR/
  images/
    training/     NAME.jpg
    validation/
  annotations/
    training/     NAME.png, one label a pixel
    validation/"""
TREES = {"detection": COCO_TREE, "segmentation": ADE20K_TREE}


def use_root(cfg: Config, root: str | os.PathLike[str], task: str) -> None:
    """Let every data set and evaluator of a detection or segmentation config read below `root`.

    The names below it are the config's own, COCO's or ADE20K's where it has none. Where COCO annotations name other
    classes than the config, these become the classes, and the model's heads follow.

    Args:
        cfg: A config of mmdet or mmsegmentation, changed in place.
        root: A folder laid out like COCO or ADE20K.
        task: "detection" or "segmentation".

    Raises:
        FileNotFoundError: A file or folder is not there; all that are missing are named, and how it should look.
        ValueError: A file is not what it should be.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"data folder {root} does not exist; it should look like\n{TREES[task]}")
    for key in DATALOADERS:
        if cfg.get(key) is None:
            continue
        for dataset in leaves(cfg[key].dataset):
            before = dict(dataset)
            _fill_names(dataset, "train" if key.startswith("train") else "val", task)
            dataset.data_root = str(root)
            _follow(cfg.get(key.replace("dataloader", "evaluator")), before, dataset, root)
    check(cfg, task)
    _use_classes(cfg, task)


def check(cfg: Config, task: str, keys: tuple[str, ...] = DATALOADERS) -> None:
    """Raise an error if files or folders that a config's data sets read are missing or empty.

    Data sets that name none are left alone: they know themselves where their data come from.

    Args:
        cfg: A config of mmdet or mmsegmentation.
        task: "detection" or "segmentation".
        keys: Loaders to look at.

    Raises:
        FileNotFoundError: Something is not there; all that is missing is named, and how it should look.
        ValueError: A folder of images or class maps is empty, or an image has no class map.
    """
    datasets = [leaf for key in keys if cfg.get(key) is not None for leaf in leaves(cfg[key].dataset)]
    missing: dict[str, None] = {}
    for dataset in datasets:
        missing.update((str(path), None) for path in _named(dataset) if not path.exists())
    if missing:
        roots = ", ".join(dict.fromkeys(str(dataset.get("data_root") or ".") for dataset in datasets))
        raise FileNotFoundError(
            f"data in {roots} are incomplete; looked for and not found: {', '.join(missing)}. "
            f"--data DIR takes them from a folder that looks like\n{TREES[task]}"
        )
    for dataset in datasets:
        _check_pairs(dataset)


def leaves(dataset: Any) -> Iterator[Any]:
    """Configs of the data sets inside a data set, or itself."""
    inner = dataset.get("datasets") or ([dataset["dataset"]] if "dataset" in dataset else [])
    if not inner:
        yield dataset
    for part in inner:
        yield from leaves(part)


def _fill_names(dataset: Any, split: str, task: str) -> None:
    """Names below the root, where the config has none; a data set that makes its own becomes one of files."""
    reads_files = dataset.get("ann_file") or dataset.get("data_prefix")
    if task == "detection":
        if not reads_files:
            dataset.type = "CocoDataset"
        dataset.setdefault("ann_file", f"annotations/instances_{split}2017.json")
        dataset.setdefault("data_prefix", {"img": f"{split}2017/"})
    else:
        part = {"train": "training", "val": "validation"}[split]
        if not reads_files:
            dataset.type = "ADE20KDataset"
        dataset.setdefault("data_prefix", {"img_path": f"images/{part}", "seg_map_path": f"annotations/{part}"})
    if not reads_files:
        for key in ("split", "scenes"):  # of data sets that make themselves
            dataset.pop(key, None)
    _relative(dataset)


def _relative(dataset: Any) -> None:
    """Take the old root off names that hold it."""
    old = str(dataset.get("data_root") or "")
    if old and str(dataset.get("ann_file") or "").startswith(old):
        dataset.ann_file = dataset.ann_file[len(old) :].lstrip("/")
    for key, value in dict(dataset.get("data_prefix") or {}).items():
        if old and str(value).startswith(old):
            dataset.data_prefix[key] = value[len(old) :].lstrip("/")


def _follow(evaluator: Any, before: dict[str, Any], dataset: Any, root: Path) -> None:
    """Let evaluators read the annotations of their data set."""
    for part in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
        if part is not None and part.get("ann_file"):
            part.ann_file = str(root / dataset.ann_file)


def _named(dataset: Any) -> Iterator[Path]:
    """Files and folders that a data set's config names."""
    root = Path(dataset.get("data_root") or ".")
    prefix = dataset.get("data_prefix")
    if dataset.get("ann_file"):
        yield root / dataset.ann_file
    if hasattr(prefix, "values"):
        yield from (root / value for value in prefix.values() if value)


def _check_pairs(dataset: Any) -> None:
    """Images and class maps of a segmentation data set, by their names."""
    prefix, root = dataset.get("data_prefix") or {}, Path(dataset.get("data_root") or ".")
    if "img_path" not in prefix or "seg_map_path" not in prefix or dataset.get("ann_file"):
        return
    images, maps = root / prefix["img_path"], root / prefix["seg_map_path"]
    image_suffix, map_suffix = (_default(dataset, name) for name in ("img_suffix", "seg_map_suffix"))
    names = {_name(path, images, image_suffix) for path in images.rglob(f"*{image_suffix}")}
    if not names:
        raise ValueError(f"{images} holds no *{image_suffix}")
    lone = sorted(names - {_name(path, maps, map_suffix) for path in maps.rglob(f"*{map_suffix}")})
    if lone:
        raise ValueError(f"{len(lone)} images of {images} have no class map, e.g. {maps / lone[0]}{map_suffix}")


def _default(dataset: Any, name: str) -> str:
    """An argument of a data set, from its config or its class."""
    parameters = inspect.signature(_class_of(dataset) or object).parameters
    default = parameters[name].default if name in parameters else {"img_suffix": ".jpg"}.get(name, ".png")
    return dataset.get(name) or default


def _name(path: Path, folder: Path, suffix: str) -> str:
    return path.relative_to(folder).as_posix().removesuffix(suffix)


def _use_classes(cfg: Config, task: str) -> None:
    """Take the classes from the annotations where the config knows others, and let the model's heads have as many."""
    loader = next(cfg[key] for key in reversed(DATALOADERS) if cfg.get(key) is not None)
    dataset = next(leaves(loader.dataset))
    classes = _known_classes(dataset)
    if task == "detection" and dataset.get("ann_file"):
        found = _categories(Path(dataset.data_root, dataset.ann_file))
        if found != classes:
            classes = found
            for key in DATALOADERS:
                for part in leaves(cfg[key].dataset) if cfg.get(key) is not None else ():
                    part.metainfo = {"classes": tuple(found)}
    heads = class_counts(cfg.model)
    if classes and heads:
        set_classes(cfg.model, heads[0], len(classes))


def _check_categories(path: Path, classes: list[str]) -> None:
    """Raise ValueError if a COCO file lacks classes or orders them otherwise.

    mmdet gives labels in the order of the file, whatever the config's, and leaves out classes that the file lacks.
    """
    found = _categories(path)
    lacking = [name for name in classes if name not in found]
    if lacking:
        raise ValueError(f"{path} lacks the classes {', '.join(lacking[:5])}{', …' if len(lacking) > 5 else ''}")
    order = [name for name in found if name in classes]
    if order != classes:
        raise ValueError(f"{path} has its classes in the order {', '.join(order)}, the config {', '.join(classes)}")


def _categories(path: Path) -> list[str]:
    """Names of a COCO file's categories, in its order."""
    try:
        text = path.read_text()
        found = list(re.finditer(r'"categories"\s*:\s*(?=\[)', text))
        if len(found) == 1:  # COCO's file for training has half a gigabyte; this reads the one entry
            categories, _ = json.JSONDecoder().raw_decode(text, found[0].end())
        else:
            categories = json.loads(text)["categories"]
        return [category["name"] for category in categories]
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no COCO annotation file: {type(error).__name__} {error}") from error


def _known_classes(dataset: Any) -> list[str]:
    given = (dataset.get("metainfo") or {}).get("classes")
    if given is None:
        given = getattr(_class_of(dataset), "METAINFO", {}).get("classes", ())
    return list(given)


def _class_of(dataset: Any) -> Any:
    """Class of a data set's config, of mmdet or mmsegmentation where the name is theirs."""
    for scope in ("mmdet", "mmseg"):
        if importlib.util.find_spec(scope) is not None:
            with DATASETS.switch_scope_and_registry(scope) as registry:
                found = registry.get(dataset.type)
            if found is not None:
                return found
    return None


def known_classes(cfg: Config) -> list[str]:
    """Classes of a config's test data, as far as it, or the class of the data set, names them."""
    loader = next(cfg[key] for key in reversed(DATALOADERS) if cfg.get(key) is not None)
    return _known_classes(next(leaves(loader.dataset)))


def check_classes(cfg: Config, keys: tuple[str, ...] = DATALOADERS) -> None:
    """Raise ValueError if heads are for another number of classes than the data, or COCO files for other classes."""
    heads = class_counts(cfg.model)
    for key in keys:
        for dataset in leaves(cfg[key].dataset) if cfg.get(key) is not None else ():
            classes = _known_classes(dataset)
            if classes and dataset.type == "CocoDataset" and dataset.get("ann_file"):
                _check_categories(Path(dataset.get("data_root") or ".", dataset.ann_file), classes)
            if classes and heads and max(heads) != len(classes):
                raise ValueError(
                    f"the model's heads have num_classes={max(heads)}, the data of {key} {len(classes)} classes: "
                    f"{', '.join(classes[:5])}{', …' if len(classes) > 5 else ''}"
                )


def class_counts(model: Any) -> list[int]:
    """Numbers of classes of a model's heads, from the outside in."""
    if isinstance(model, (list, tuple)):
        return [count for part in model for count in class_counts(part)]
    if not hasattr(model, "items"):
        return []
    own = [value for key, value in model.items() if key in ("num_classes", "num_things_classes") and value]
    return own + [count for value in model.values() for count in class_counts(value)]


def set_classes(model: Any, old: int, new: int) -> None:
    """Let every head of a model's config that has `old` classes have `new` ones, its class weights with them."""
    if isinstance(model, (list, tuple)):
        for part in model:
            set_classes(part, old, new)
    if not hasattr(model, "keys"):
        return
    for key, value in list(model.items()):
        if key in ("num_classes", "num_things_classes") and value == old:
            model[key] = new
        elif key == "class_weight" and isinstance(value, (list, tuple)) and len(value) in (old, old + 1):
            model[key] = [value[0]] * new + list(value[old:])
        else:
            set_classes(value, old, new)
