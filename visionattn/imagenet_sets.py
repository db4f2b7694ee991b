# SPDX-License-Identifier: Apache-2.0
"""ImageNet's validation set and its kin: where images lie, and which classes are right for them."""

from __future__ import annotations

import io
import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
from PIL import Image
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.data.real_labels import RealLabelsImagenet

if TYPE_CHECKING:
    from visionattn.data import EncodedDataset

SUBSETS = {"a": "imagenet_a", "r": "imagenet_r"}
SPLITS = ("val", "validation", "test")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
VALIDATION_IMAGES = 50_000


@dataclass(frozen=True)
class Images:
    """Images to evaluate on: files of a folder, or samples of another data set.

    Args:
        root: What holds them.
        paths: The files, in order; of samples, where they come from.
        folders: Name of each file's class folder, or of each sample's class; empty strings where there is none.
        samples: Data set and the samples' numbers in it; None for files.
        lost: Samples without a label that can be read.
    """

    root: Path
    paths: tuple[Path, ...]
    folders: tuple[str, ...]
    samples: tuple[EncodedDataset, tuple[int, ...]] | None = None
    lost: tuple[str, ...] = ()

    def open(self, index: int) -> Image.Image:
        """Image of a number, not decoded yet."""
        if self.samples is None:
            return Image.open(self.paths[index])
        dataset, numbers = self.samples
        return Image.open(io.BytesIO(dataset.content(numbers[index])))

    @property
    def classes(self) -> list[str]:
        """Names of the class folders, in order."""
        return sorted(set(self.folders) - {""})


@dataclass(frozen=True)
class Truth:
    """What counts as right.

    Args:
        name: "1k", "v2" (numbered folders), "a", "r", "real" or "subset".
        right: Right classes of each image, as positions in the model's logits; an image without any does not count.
        allowed: Positions that predictions are made among; None for all.
    """

    name: str
    right: tuple[tuple[int, ...], ...]
    allowed: tuple[int, ...] | None = None


def find_images(data: str | os.PathLike[str]) -> Images:
    """Images of a folder: in class folders, those of its `val/` where it has one, or without folders.

    Or, where a folder has none, the validation images of its tar files or WebDataset shards; of shards at an address;
    of `hfds/` and a name, a Hugging Face data set.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: There are no images in it.
    """
    if not Path(data).is_dir():
        return _find_samples(data)
    root = Path(data)
    root = next((root / split for split in SPLITS if (root / split).is_dir()), root)
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        return _find_samples(data)
    inside = [path.relative_to(root).parts for path in found]
    return Images(root, tuple(found), tuple(parts[0] if len(parts) > 1 else "" for parts in inside))


def _find_samples(data: str | os.PathLike[str]) -> Images:
    """Images in tar files, shards or a Hugging Face data set, for which what training needs must be installed."""
    from visionattn import data as kinds
    from visionattn.data.shards import has_classes
    from visionattn.data.sources import LAYOUTS

    is_tar = Path(data).is_file() and tarfile.is_tarfile(data)
    source: dict[str, Any]
    try:
        source = {"type": "TarDataset", "root": os.fspath(data)} if is_tar else kinds.recognise(data)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--data {data}: there is no such folder; data are {LAYOUTS}") from error
    kind = source.pop("type")
    if kind == "ImageFolderDataset":
        raise ValueError(f"--data {data} has no images ({', '.join(SUFFIXES)})")
    if kind == "ShardDataset" and not has_classes(source["root"]):
        source["classes"] = 1000
    dataset: EncodedDataset = getattr(kinds, kind)(pipeline=[], split="test", **source)
    labels, lost = {}, []
    for index in range(len(dataset)):
        try:
            labels[index] = dataset.label(index)
        except ValueError:
            lost.append(dataset.source(index))
    # Tar files name their classes; the labels of others are numbers, whatever the names.
    named = kind == "TarDataset" or all(map(re.compile(r"n\d{8}").fullmatch, dataset.classes))
    return Images(
        Path(data),
        tuple(Path(dataset.source(index)) for index in labels),
        tuple(dataset.classes[label] if named else str(label) for label in labels.values()),
        (dataset, tuple(labels)),
        tuple(lost),
    )


def find_truth(images: Images, num_classes: int, labels: str = "auto") -> Truth:
    """Right classes of images for a model.

    Args:
        images: From `find_images`.
        num_classes: Classes of the model, which tell its set of synsets: 1000, or those of ImageNet-12K, -21K or -22K.
        labels: As in `Settings`.

    Raises:
        ValueError: Names of folders or files are no classes of the model's.
    """
    if labels == "real" or (labels == "auto" and not images.classes):
        return _real_truth(images, num_classes)
    if "" in images.folders:
        stray = images.paths[images.folders.index("")]
        raise ValueError(f"{stray} lies in no class folder; labels='real' takes the validation set without folders")
    names = images.classes
    if all(name.isdecimal() for name in names):
        if max(map(int, names)) >= num_classes:
            raise ValueError(f"{images.root}: folder {max(names, key=int)} is no class of a model of {num_classes}")
        right = tuple((int(name),) for name in images.folders)
        return Truth("v2" if images.samples is None else _set_of(len(names)), right)
    position = _positions(num_classes)
    strange = [name for name in names if name not in position]
    if strange:
        raise ValueError(
            f"{images.root}: {len(strange)} of {len(names)} folders are no classes of a model of {num_classes} "
            f"({', '.join(strange[:5])}); folders are named as ImageNet's synsets (n01440764) or numbers (0 to 999)"
        )
    right = tuple((position[name],) for name in images.folders)
    for short, subset in SUBSETS.items():
        synsets = _lines(f"{subset}_synsets.txt")
        if set(names) == set(synsets):
            return Truth(short, right, tuple(position[synset] for synset in synsets if synset in position))
    return Truth(_set_of(len(names)), right)


def _set_of(classes: int) -> str:
    return "1k" if classes == 1000 else "subset"


def _real_truth(images: Images, num_classes: int) -> Truth:
    if num_classes != 1000:
        raise ValueError(f"labels='real' are of ImageNet-1K's classes; the model has {num_classes}")
    real = RealLabelsImagenet([""] * VALIDATION_IMAGES).real_labels
    strange = [path for path in images.paths if f"{path.stem}.JPEG" not in real]
    if strange:
        raise ValueError(
            f"{strange[0]}: labels='real' go by the names of the validation set's files, ILSVRC2012_val_00000001.JPEG"
        )
    return Truth("real", tuple(tuple(real[f"{path.stem}.JPEG"]) for path in images.paths))


def _positions(num_classes: int) -> dict[str, int]:
    """Position of each synset in the logits of a model."""
    subset = infer_imagenet_subset({"num_classes": num_classes})
    if subset is None:
        raise ValueError(
            f"a model of {num_classes} classes has no ImageNet labels; it needs 1000, or those of 12K to 22K"
        )
    return {synset: i for i, synset in enumerate(ImageNetInfo(subset).label_names())}


def _lines(file: str) -> list[str]:
    return Path(timm.data.__file__).with_name("_info").joinpath(file).read_text().split()
