# SPDX-License-Identifier: Apache-2.0
"""Labelled images with an albumentations pipeline: the embedded digits and folders of class folders."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from visionattn.data.imagenet import ImagePipeline
from visionattn.data.images import IMAGE_SUFFIXES, decode_image, read_file
from visionattn.data.pipeline import build_pipeline
from visionattn.data.randomness import own_randomness, sample_seed

logger = logging.getLogger(__name__)

Pipeline = Mapping[str, Any] | Sequence[Mapping[str, Any]]

SPLIT_FOLDERS = {"train": ("train",), "test": ("val", "test", "validation")}


class ClassificationDataset(Dataset, ABC):
    """Samples `dict(inputs=(3, H, W) float tensor, label=int)`, augmented the same way on every run.

    The random state of a sample's augmentation follows from `(seed, epoch, index)` alone, so neither the number of
    loader workers nor a resumed run changes what the model sees.

    Args:
        classes: Class names; a label is a position in it.
        labels: Label of each sample.
        pipeline: Transforms for `build_pipeline`, or one description of ImageNet's.
        split: "train" or "test"; test samples keep the random state of epoch 0.
        seed: Seed of the augmentations.
        on_bad_image: "skip" leaves an image that cannot be read out of its batch and logs its name once;
            "raise" stops with the error that names it.

    Raises:
        ValueError: An argument is not one of the allowed values, or a label is no position in `classes`.
    """

    def __init__(
        self,
        classes: Sequence[str],
        labels: Sequence[int],
        pipeline: Pipeline,
        split: str = "train",
        seed: int = 0,
        on_bad_image: str = "skip",
    ) -> None:
        check_choice("split", split, ("train", "test"))
        check_choice("on_bad_image", on_bad_image, ("skip", "raise"))
        self.classes = tuple(classes)
        self.labels = [int(label) for label in labels]
        wrong = sorted({label for label in self.labels if not 0 <= label < len(self.classes)})
        if wrong:
            raise ValueError(f"labels {wrong[:5]} lie outside the range of {len(self.classes)} classes")
        self.pipeline = build_pipeline(pipeline)
        self.split = split
        self.on_bad_image = on_bad_image
        # Shared memory: loader workers, also persistent ones, see a new epoch and report what they could not read.
        self._seed_epoch = torch.tensor([seed, 0]).share_memory_()
        self._bad = torch.zeros(len(self), dtype=torch.bool).share_memory_()

    @property
    def metainfo(self) -> dict[str, Any]:
        """What mmengine stores in checkpoints: the class names."""
        return {"classes": list(self.classes)}

    @abstractmethod
    def image(self, index: int) -> np.ndarray:
        """RGB image of one sample before the pipeline, `(H, W, 3)` uint8."""

    def label(self, index: int) -> int:
        """Class of one sample."""
        return self.labels[index]

    def load(self, index: int) -> Any:
        """What `finish` takes of one sample; raises OSError or ValueError where it cannot be read."""
        image = self.image(index)
        return self.pipeline.prepare(image) if isinstance(self.pipeline, ImagePipeline) else image

    def finish(self, loaded: Any) -> torch.Tensor:
        """The sample's tensor, `(3, H, W)`."""
        if isinstance(self.pipeline, ImagePipeline):
            return self.pipeline.finish(loaded)
        return self.pipeline(image=loaded)["image"]

    def source(self, index: int) -> str:
        """Where a sample comes from, for people to read."""
        return f"{self.split} sample {index}"

    def set_random_state(self, seed: int, epoch: int) -> None:
        """Seed and epoch that the augmentations of the next samples follow from."""
        self._seed_epoch[:] = torch.tensor([seed, epoch])

    def bad_files(self) -> list[str]:
        """Sources of the samples that could not be read so far."""
        return [self.source(int(index)) for index in self._bad.nonzero()]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        """A sample; indices beyond the last are the same samples again, augmented differently."""
        seed, epoch = self._seed_epoch.tolist()
        draw = sample_seed(seed, 0 if self.split == "test" else epoch, index)
        index %= len(self)
        with self._randomness(draw):
            try:
                loaded, label = self.load(index), self.label(index)
            except LabelError:
                raise
            except (OSError, ValueError) as error:
                if self.on_bad_image == "raise":
                    raise
                if not self._bad[index]:
                    self._bad[index] = True
                    logger.warning("skipped: %s", error)
                return None
            return {"inputs": self.finish(loaded), "label": label}

    def _randomness(self, seed: int) -> AbstractContextManager[None]:
        """Where the pipeline's random numbers follow from `seed`."""
        if isinstance(self.pipeline, ImagePipeline):
            return own_randomness(seed)
        self.pipeline.set_random_seed(seed)
        return nullcontext()


class LabelError(ValueError):
    """A label that is no class: of the data set as a whole, not of one image, so that it is never skipped."""


class EncodedDataset(ClassificationDataset):
    """Samples that are files' bytes, wherever these lie. Arguments as for `ClassificationDataset`."""

    @abstractmethod
    def content(self, index: int) -> bytes:
        """Bytes of one sample's image file; raises OSError or ValueError where they cannot be read."""

    def image(self, index: int) -> np.ndarray:
        """Image of one sample, turned upright, `(H, W, 3)` uint8."""
        return decode_image(self.content(index), self.source(index))

    def load(self, index: int) -> Any:
        """See `ClassificationDataset`; ImageNet's pipelines decode the part that they need."""
        if isinstance(self.pipeline, ImagePipeline):
            return self.pipeline.decode(self.content(index), self.source(index))
        return super().load(index)


class DigitsDataset(ClassificationDataset):
    """The 1,797 scans of handwritten digits that scikit-learn ships, 80 % for training, 20 % for testing.

    The scans are 8x8 with 17 grey levels (E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI,
    1998); they are enlarged by bicubic interpolation. The split is fixed and stratified.

    Args:
        pipeline: Transforms for `build_pipeline`.
        split: "train" (1,437 images) or "test" (360 images).
        size: Side of the enlarged image in pixels, before the pipeline.
        seed: Seed of the augmentations; the split does not depend on it.
        on_bad_image: As for `ClassificationDataset`.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        split: str = "train",
        size: int = 32,
        seed: int = 0,
        on_bad_image: str = "skip",
    ) -> None:
        if size < 8:
            raise ValueError(f"size={size} is smaller than the scans; use at least 8")
        self.scans, labels = digit_scans(split)
        self.size = size
        super().__init__([str(digit) for digit in range(10)], labels.tolist(), pipeline, split, seed, on_bad_image)

    def image(self, index: int) -> np.ndarray:
        """Enlarged scan, `(size, size, 3)` uint8."""
        scan = cv2.resize(self.scans[index], (self.size, self.size), interpolation=cv2.INTER_CUBIC)
        return np.repeat(scan[..., None], 3, axis=-1)


def digit_scans(split: str) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's scans of digits in one part of a fixed, stratified split, for training or for testing.

    Args:
        split: "train" (1,437 scans) or "test" (360 scans).

    Returns:
        Scans `(N, 8, 8)` uint8, ink bright, and digits `(N,)`.

    Raises:
        ValueError: `split` is neither.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    check_choice("split", split, ("train", "test"))
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    chosen = np.sort(parts[0 if split == "train" else 1])
    return np.round(images[chosen].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), labels[chosen]


class ImageFolderDataset(EncodedDataset):
    """Images in a folder of class folders.

    Args:
        root: Either holds `train/` and `val/` (or `test/`), each with one folder a class, or the class folders
            themselves, which are then split, class by class, always in the same way.
        pipeline: Transforms for `build_pipeline`.
        split: "train" or "test".
        test_fraction: Part of each class that is kept for testing where `root` has no split of its own.
        seed: Seed of the augmentations; the split does not depend on it.
        on_bad_image: As for `ClassificationDataset`.

    Raises:
        FileNotFoundError: `root` or its split does not exist.
        ValueError: There are no class folders, no images, or the two splits differ in their classes.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        pipeline: Pipeline,
        split: str = "train",
        test_fraction: float = 0.2,
        seed: int = 0,
        on_bad_image: str = "skip",
    ) -> None:
        check_choice("split", split, ("train", "test"))
        if not 0 < test_fraction < 1:
            raise ValueError(f"test_fraction={test_fraction} must lie between 0 and 1")
        root = Path(root)
        if not root.is_dir():
            raise FileNotFoundError(f"data folder {root} does not exist")
        if (root / "train").is_dir():
            classes, samples = _own_split(root, split)
        else:
            classes, samples = _made_split(root, split, test_fraction)
        if not samples:
            raise ValueError(f"{root} has no images in its {split} split ({', '.join(sorted(IMAGE_SUFFIXES))})")
        self.paths = [path for path, _ in samples]
        super().__init__(classes, [label for _, label in samples], pipeline, split, seed, on_bad_image)

    def content(self, index: int) -> bytes:
        """Bytes of one file."""
        return read_file(self.paths[index])

    def source(self, index: int) -> str:
        """Path of the file."""
        return str(self.paths[index])


def drop_bad(samples: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """Batch of the samples that could be read.

    Raises:
        ValueError: None of them could.
    """
    good = [sample for sample in samples if sample is not None]
    if not good:
        raise ValueError(f"none of the {len(samples)} images of a batch could be read")
    return default_collate(good)


def check_choice(argument: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{argument}={value!r} must be one of {', '.join(map(repr, allowed))}")


def _class_folders(root: Path) -> list[Path]:
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(folders) < 2:
        raise ValueError(f"{root} must hold at least two class folders, but has {len(folders)}")
    return folders


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _own_split(root: Path, split: str) -> tuple[list[str], list[tuple[Path, int]]]:
    found = [root / name for name in SPLIT_FOLDERS[split] if (root / name).is_dir()]
    if not found:
        raise FileNotFoundError(f"{root} has train/ but no {' or '.join(n + '/' for n in SPLIT_FOLDERS[split])}")
    classes = [folder.name for folder in _class_folders(root / "train")]
    folders = _class_folders(found[0])
    odd = sorted(set(classes) ^ {folder.name for folder in folders})
    if odd:
        raise ValueError(f"{root / 'train'} and {found[0]} differ in their classes: {', '.join(odd[:8])}")
    return classes, [(path, label) for label, folder in enumerate(folders) for path in _images(folder)]


def _made_split(root: Path, split: str, test_fraction: float) -> tuple[list[str], list[tuple[Path, int]]]:
    folders = _class_folders(root)
    samples = []
    for label, folder in enumerate(folders):
        images = _images(folder)
        # The order is random yet fixed, as neighbouring file names are often neighbouring frames.
        order = np.random.default_rng(0).permutation(len(images))
        held_out = min(max(round(test_fraction * len(images)), 1), max(len(images) - 1, 0))
        chosen = order[:held_out] if split == "test" else order[held_out:]
        samples += [(images[i], label) for i in sorted(chosen)]
    return [folder.name for folder in folders], samples
