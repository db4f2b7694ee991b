# SPDX-License-Identifier: Apache-2.0
"""Labelled images in tar files and in Hugging Face datasets, through timm's readers."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import Any

from timm.data.readers.reader_image_in_tar import ReaderImageInTar

from visionattn.data.datasets import SPLIT_FOLDERS, EncodedDataset, Pipeline, check_choice


class TarDataset(EncodedDataset):
    """Images in tar files, each class in a folder or a tar file of its own.

    Args:
        root: Holds `train.tar` and `val.tar` (or `test.tar`) with class folders in them or one tar file a class, or
            `train/` and `val/` with one tar file a class; or is one such tar file itself.
        pipeline: Transforms for `build_pipeline`, or one description of ImageNet's.
        split: "train" or "test".
        seed: Seed of the augmentations.
        on_bad_image: As for `ClassificationDataset`.

    Raises:
        FileNotFoundError: `root` or its split does not exist.
        ValueError: A tar file is damaged, or there are no images or fewer than two classes.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        pipeline: Pipeline,
        split: str = "train",
        seed: int = 0,
        on_bad_image: str = "skip",
    ) -> None:
        check_choice("split", split, ("train", "test"))
        self.path = tar_split(root, split)
        try:
            # Its cache is a pickle beside the data.
            self.reader = ReaderImageInTar(str(self.path), cache_tarinfo=False)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ValueError(f"{self.path} is damaged: {error}") from error
        except ValueError as error:  # nothing to unpack
            raise ValueError(f"{self.path} holds no images in its tar files") from error
        names = sorted(self.reader.class_name_to_idx, key=self.reader.class_name_to_idx.__getitem__)
        if len(names) < 2:
            raise ValueError(f"{self.path} must hold at least two classes, but has {len(names)}: {', '.join(names)}")
        self._process = os.getpid()
        super().__init__(names, self.reader.targets.tolist(), pipeline, split, seed, on_bad_image)

    def content(self, index: int) -> bytes:
        """Bytes of one member."""
        if self._process != os.getpid():  # a place in an open file is shared with the process that opened it
            self._forget_open_files()
        try:
            file, _ = self.reader[index]
            content = file.read()
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"{self.source(index)} cannot be read: {error}") from error
        size = self.reader.samples[index][0].size
        if len(content) < size:
            raise ValueError(f"{self.source(index)} is cut off after {len(content)} of {size} bytes")
        return content

    def source(self, index: int) -> str:
        """Path of the tar file and the member's name in it."""
        member, inner, _ = self.reader.samples[index]
        return f"{self.path / inner if inner else self.path}:{member.name}"

    def _forget_open_files(self) -> None:
        states = [self.reader.tar_state] if self.reader.root_is_tar else list(self.reader.tar_state.values())
        for state in states:
            for part in (state, *state.children.values()):
                part.tf = None
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        self._forget_open_files()
        return self.__dict__


def tar_split(root: str | os.PathLike[str], split: str) -> Path:
    """Tar file, or folder of tar files, of a split.

    Raises:
        FileNotFoundError: There is none.
    """
    root = Path(root)
    if root.is_file():
        return root
    names = SPLIT_FOLDERS[split]
    for name in names:
        if (root / f"{name}.tar").is_file():
            return root / f"{name}.tar"
        if (root / name).is_dir() and any((root / name).glob("*.tar")):
            return root / name
    wanted = " or ".join(f"{name}.tar" for name in names)
    raise FileNotFoundError(f"{root} has no {wanted}, and no folder {' or '.join(names)} of tar files")


class HubDataset(EncodedDataset):
    """A Hugging Face dataset of images and labels, local or on their hub, through timm's reader. Needs `datasets`.

    Args:
        name: As for `datasets.load_dataset`: a name on the hub, or a local folder.
        pipeline: Transforms for `build_pipeline`, or one description of ImageNet's.
        split: "train" or "test", which is the first of the dataset's "validation", "val" and "test".
        image_key: Column of the images.
        label_key: Column of the labels, of type ClassLabel.
        cache: Folder for downloads.
        seed: Seed of the augmentations.
        on_bad_image: As for `ClassificationDataset`.

    Raises:
        ModuleNotFoundError: `datasets` is not installed.
        FileNotFoundError: There is no such dataset or split.
        ValueError: A column is missing, its labels have no names, or there are fewer than two classes.
    """

    def __init__(
        self,
        name: str,
        pipeline: Pipeline,
        split: str = "train",
        image_key: str = "image",
        label_key: str = "label",
        cache: str | os.PathLike[str] | None = None,
        seed: int = 0,
        on_bad_image: str = "skip",
    ) -> None:
        check_choice("split", split, ("train", "test"))
        import datasets
        from timm.data.readers.reader_hfds import ReaderHfds

        self.name = name
        names = ("train",) if split == "train" else ("validation", "val", "test")
        try:
            known = datasets.get_dataset_split_names(name)
        except (datasets.exceptions.DatasetNotFoundError, ConnectionError, FileNotFoundError) as error:
            raise FileNotFoundError(f"hfds/{name}: there is no such dataset here or on the hub ({error})") from error
        part = next((part for part in names if part in known), None)
        if part is None:
            raise FileNotFoundError(f"hfds/{name} has no split {' or '.join(names)}, but {', '.join(known)}")
        try:
            self.reader = ReaderHfds(
                name, None if cache is None else str(cache), part, input_key=image_key, target_key=label_key
            )
        except (KeyError, ValueError) as error:
            raise ValueError(f"hfds/{name}: {error}; image_key={image_key!r} and label_key={label_key!r}") from error
        columns = self.reader.dataset.features
        if not isinstance(columns.get(label_key), datasets.ClassLabel):
            raise ValueError(
                f"hfds/{name}: label_key={label_key!r} must name a column of type ClassLabel; the columns are {columns}"
            )
        if len(self.reader) and self.reader.dataset[0][image_key] is None:  # a column that is not there is added
            raise ValueError(f"hfds/{name}: image_key={image_key!r} must name a column of images; there are {columns}")
        classes = columns[label_key].names
        if len(classes) < 2:
            raise ValueError(f"hfds/{name} must have at least two classes, but has {len(classes)}")
        super().__init__(classes, self.reader.dataset[label_key], pipeline, split, seed, on_bad_image)

    def content(self, index: int) -> bytes:
        """Bytes of one image."""
        file, _ = self.reader[index]
        with file:
            return file.read()

    def source(self, index: int) -> str:
        """Name of the dataset and the row's number."""
        return f"hfds/{self.name} row {index}"
