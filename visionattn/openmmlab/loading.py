# SPDX-License-Identifier: Apache-2.0
"""Data of mmdet and mmsegmentation: the same samples on every run, and errors that name the file.

A training sample's random numbers follow from `(seed, epoch, position)` alone, so neither the number of loader workers,
nor the number of processes, nor a resumed run changes what the model sees.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.dataset import Compose
from mmengine.dist import get_rank, get_world_size
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from visionattn.data.images import ends_early
from visionattn.data.randomness import own_randomness, sample_seed

JPEG_SUFFIXES = (".jpg", ".jpeg")


class Draw(NamedTuple):
    """A sample's place in the data set, and the seed of its random numbers."""

    sample: int
    seed: int


class SeededDataset(Dataset):
    """A data set whose samples are asked for by `Draw`s; in everything else it is the data set inside."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Any:
        with own_randomness(draw.seed):
            return self.dataset[draw.sample]

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):  # unpickling asks before there is a data set
            raise AttributeError(name)
        return getattr(self.dataset, name)


class NumberedBatches:
    """Batches of a batch sampler as `Draw`s, each sample's seed following from its position in the epoch.

    Positions count the samples of all processes in the order in which samplers deal them out, so that two processes
    see what one with twice the batch sees.

    Args:
        batches: A batch sampler; `batches.sampler` says the epoch.
        seed: Seed of the run.

    Attributes:
        skip: Batches to leave out at the beginning, without loading them.
    """

    def __init__(self, batches: Any, seed: int) -> None:
        self.batches = batches
        self.seed = seed
        self.skip = 0

    @property
    def sampler(self) -> Any:
        """What mmengine tells the epoch."""
        return self.batches.sampler

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, rank, world = getattr(self.sampler, "epoch", 0), get_rank(), get_world_size()
        count = itertools.count()
        for number, batch in enumerate(self.batches):
            draws = [(index, next(count) * world + rank) for index in batch]
            if number >= self.skip:
                yield [Draw(index, sample_seed(self.seed, epoch, position)) for index, position in draws]


def reproducible(loader: DataLoader, seed: int) -> DataLoader:
    """The same loader with samples that follow from `(seed, epoch, position)`.

    Data sets that seed themselves (`set_random_state`) are left as they are.
    """
    if hasattr(loader.dataset, "set_random_state"):
        return loader
    return rebuilt(loader, SeededDataset(loader.dataset), NumberedBatches(loader.batch_sampler, seed))


def rebuilt(loader: DataLoader, dataset: Any, batches: Any) -> DataLoader:
    """A loader with the settings of another one, for a data set and batches of its indices."""
    workers: dict[str, Any] = {
        "persistent_workers": loader.persistent_workers,
        "prefetch_factor": loader.prefetch_factor,
    }
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        **(workers if loader.num_workers else {}),
    )


class GuardedPipeline:
    """A pipeline whose errors name the image, and which refuses images and class maps that are damaged.

    Args:
        pipeline: mmengine's `Compose`.
        classes: Number of classes of a class map; None where there is none.
        ignore_index: Label of pixels that belong to no class.
    """

    def __init__(self, pipeline: Any, classes: int | None = None, ignore_index: int = 255) -> None:
        self.pipeline = pipeline
        steps, kinds = pipeline.transforms, [type(step).__name__ for step in pipeline.transforms]
        # Right after loading, before anything is resized or cropped, as that would hide what does not fit.
        for kind, check in (("LoadAnnotations", CheckMap(classes, ignore_index)), ("LoadImageFromFile", CheckImage())):
            if kind in kinds:
                steps.insert(kinds.index(kind) + 1, check)
        self.reads_maps = classes is not None and "LoadAnnotations" in kinds

    @property
    def transforms(self) -> list[Any]:
        """The pipeline's steps."""
        return self.pipeline.transforms

    def __call__(self, data: dict[str, Any]) -> Any:
        """What the pipeline makes of a sample."""
        source = data.get("img_path", "a sample")  # the pipeline changes `data`
        maps = self.reads_maps and data.get("seg_map_path")
        try:
            if maps and Path(maps).is_file() and 1 in (size := image_size(maps)):
                raise ValueError(f"class map {maps} has {size[0]}x{size[1]} pixels; it needs more than one each way")
            return self.pipeline(data)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(reason if str(source) in reason else f"{source}: {reason}") from error


class CheckImage:
    """Raises ValueError on an image whose file is cut off."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """The sample as it is."""
        path = results.get("img_path")
        if path is not None and is_cut_off(path):
            raise ValueError(f"image {path} is cut off: the end of its JPEG data is missing")
        return results


class CheckMap:
    """Raises ValueError on a class map that does not fit its image or the classes.

    Args:
        classes: Number of classes of a class map; None leaves its labels unchecked.
        ignore_index: Label of pixels that belong to no class.
    """

    def __init__(self, classes: int | None = None, ignore_index: int = 255) -> None:
        self.classes = classes
        self.ignore_index = ignore_index

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """The sample as it is."""
        labels = results.get("gt_seg_map")
        if labels is not None:
            self._check(labels, results)
        return results

    def _check(self, labels: np.ndarray, results: dict[str, Any]) -> None:
        path, size = results.get("seg_map_path"), tuple(results["ori_shape"])  # the image may be resized already
        if labels.shape != size:
            raise ValueError(f"class map {path} has shape {labels.shape}, its image {size}; it needs one label a pixel")
        known = labels[labels != self.ignore_index]
        if self.classes is not None and known.size and not 0 <= known.min() <= known.max() < self.classes:
            wrong = np.unique(known[(known < 0) | (known >= self.classes)])[:5].tolist()
            raise ValueError(
                f"class map {path} has the labels {wrong}; allowed are 0 to {self.classes - 1}, and "
                f"{self.ignore_index} for pixels to ignore"
                + (" (after 1 was taken off: reduce_zero_label)" if results.get("reduce_zero_label") else "")
            )


def image_size(path: str) -> tuple[int, int]:
    """`(height, width)` of an image file, from its header."""
    with Image.open(path) as image:
        return image.height, image.width


def is_cut_off(path: str) -> bool:
    """Whether a JPEG file ends within its picture, of which decoders make a picture that is partly grey."""
    file = Path(path)
    return file.suffix.lower() in JPEG_SUFFIXES and file.is_file() and ends_early(file.read_bytes())


def guard(dataset: Any) -> None:
    """Have a data set's errors name the file, and raise ValueError if it has no samples.

    Data sets inside of others are guarded too.

    Args:
        dataset: Of mmdet, mmsegmentation, or any other, which is only measured.

    Raises:
        ValueError: There are no samples.
    """
    if len(dataset) == 0:
        raise ValueError("the data set has no samples")
    for part in _parts(dataset):
        pipeline = getattr(part, "pipeline", None)
        if isinstance(pipeline, Compose):
            of_maps = hasattr(part, "reduce_zero_label")  # mmsegmentation's
            classes = getattr(part, "metainfo", {}).get("classes") if of_maps else None
            part.pipeline = GuardedPipeline(
                pipeline, None if classes is None else len(classes), getattr(part, "ignore_index", 255)
            )


def _parts(dataset: Any) -> Iterable[Any]:
    wrapped = [vars(dataset)[name] for name in ("dataset", "_dataset") if name in vars(dataset)]
    inner = vars(dataset).get("datasets") or wrapped
    return itertools.chain([dataset], *(_parts(part) for part in inner))


def why_empty(dataset: Any) -> str:
    """What a data set's config says of where samples come from and which are left out."""
    where = " and ".join(str(dataset[key]) for key in ("ann_file", "data_prefix", "data_root") if dataset.get(key))
    filtering = dataset.get("filter_cfg")
    return f"read from {where or dataset}" + (f"; filter_cfg={dict(filtering)} leaves out images" if filtering else "")
