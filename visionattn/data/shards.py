# SPDX-License-Identifier: Apache-2.0
"""WebDataset shards: labelled images in tar files of a few thousand samples, read in long runs.

A sample is the members of one key, `KEY.jpg` beside `KEY.cls` (its class as a number) or `KEY.json` (a field of it).
Shards far away are fetched whole, one after the other, into a folder; shards on a disk are read where they lie. Which
samples come when is arithmetic on the shards' lengths, so that a run can be resumed anywhere without reading what came
before.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

from visionattn._files import replacing
from visionattn.data.datasets import (
    SPLIT_FOLDERS,
    ClassificationDataset,
    EncodedDataset,
    LabelError,
    Pipeline,
    check_choice,
)

logger = logging.getLogger(__name__)

IMAGES = ("jpg", "jpeg", "png", "webp")
INFO_FILES = ("_info.json", "info.json")
CLASS_FILES = ("classes.txt", "classnames.txt")
BLOCK = 512


class Sample(NamedTuple):
    """Where a sample's members lie in their shard: offset and size in bytes."""

    key: str
    image: tuple[int, int]
    label: tuple[int, int] | None


class ShardDataset(EncodedDataset):
    """Images and labels in WebDataset shards.

    Args:
        root: Folder or address of the shards. `_info.json` in it may list the splits with their `filenames` and
            `shard_lengths`, as timm writes it; without it the shards are those in `train/` and `val/`, or those whose
            names have `train` and `val` (`test`, `validation`) in them, and are counted once.
        pipeline: Transforms for `build_pipeline`, or one description of ImageNet's.
        split: "train" or "test".
        shards: The split's shards below `root`, with braces (`train-{000..127}.tar`), in place of what is found.
        classes: Class names, or their number; by default the lines of `classes.txt` in `root`.
        label_key: Field of the `json` member that holds the class; None takes the `cls` member.
        cache: Folder for shards that are fetched from an address; they stay there up to `cache_bytes`. By default
            `visionattn/shards` among the user's caches.
        cache_bytes: Most bytes of fetched shards; the longest unused ones go first.
        seed: Seed of the augmentations.
        on_bad_image: As for `ClassificationDataset`; samples that a damaged shard lacks count as bad images.

    Raises:
        FileNotFoundError: There are no such shards.
        ValueError: Shards are empty or damaged (with `on_bad_image="raise"`), or the classes are not known.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        pipeline: Pipeline,
        split: str = "train",
        shards: str | None = None,
        classes: int | Sequence[str] | None = None,
        label_key: str | None = None,
        cache: str | os.PathLike[str] | None = None,
        cache_bytes: float = 100e9,
        seed: int = 0,
        on_bad_image: str = "skip",
    ) -> None:
        check_choice("split", split, ("train", "test"))
        check_choice("on_bad_image", on_bad_image, ("skip", "raise"))
        self.root = os.fspath(root)
        self.cache = ShardCache(cache or default_cache(), cache_bytes) if is_address(self.root) else None
        self.label_key = label_key
        self.names, lengths = find_shards(self.root, split, shards)
        self._opened: dict[int, tuple[int, Any, list[Sample], str | None]] = {}
        self.lengths = lengths or self._count(on_bad_image)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)
        if not self.starts[-1]:
            raise ValueError(f"{self.root}: its {len(self.names)} shards of the {split} split hold no images")
        super().__init__(find_classes(self.root, classes), (), pipeline, split, seed, on_bad_image)
        if len(self.classes) < 2:
            raise ValueError(f"{self.root} must have at least two classes, but has {len(self.classes)}")

    def __len__(self) -> int:
        return int(self.starts[-1])

    def place(self, index: int) -> tuple[int, int]:
        """Shard of a sample, and its number there."""
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        return shard, index - int(self.starts[shard])

    def content(self, index: int) -> bytes:
        """Bytes of one image."""
        return self._read(index, lambda sample: sample.image)

    def label(self, index: int) -> int:
        """Class of one sample.

        Raises:
            ValueError: It is none of the classes, or not there.
        """
        text = self._read(index, lambda sample: sample.label)
        try:
            label = int(text if self.label_key is None else json.loads(text)[self.label_key])
        except (KeyError, TypeError, ValueError) as error:
            wanted = "a .cls member with a number" if self.label_key is None else f"label_key={self.label_key!r}"
            raise LabelError(f"{self.source(index)} has no label: {wanted} is missing ({error})") from error
        if not 0 <= label < len(self.classes):
            raise LabelError(
                f"{self.source(index)} has the label {label}; allowed are 0 to {len(self.classes) - 1}, as there are "
                f"{len(self.classes)} classes"
            )
        return label

    def source(self, index: int) -> str:
        """Shard and key of a sample."""
        shard, number = self.place(index)
        samples = self._opened[shard][2] if shard in self._opened else []
        return f"{self._where(shard)}:{samples[number].key if number < len(samples) else f'sample {number}'}"

    def _where(self, shard: int) -> str:
        return os.path.join(self.root, self.names[shard])

    def _read(self, index: int, member: Any) -> bytes:
        shard, number = self.place(index)
        file, samples, damage = self._open(shard)
        if number >= len(samples):
            why = damage or f"has {len(samples)} samples, {self.lengths[shard]} were announced"
            raise ValueError(f"shard {self._where(shard)} {why}; sample {number} is missing")
        offset, size = member(samples[number]) or (0, 0)
        content = os.pread(file.fileno(), size, offset)
        if len(content) < size:
            raise ValueError(f"{self.source(index)} is cut off after {len(content)} of {size} bytes")
        return content

    def _open(self, shard: int, keep: int = 16) -> tuple[Any, list[Sample], str | None]:
        """A shard's file, its samples and what is wrong with it; the last `keep` shards stay open in each process."""
        known = self._opened.get(shard)
        if known is None or known[0] != os.getpid():
            path = self._where(shard) if self.cache is None else self.cache.fetch(self._where(shard))
            file = open(path, "rb")  # noqa: SIM115 - stays open
            samples, damage = known[2:] if known else list_samples(file, self.label_key)
            if damage:
                logger.warning("shard %s %s", self._where(shard), damage)
            if hasattr(os, "posix_fadvise"):  # samples are wanted soon, in any order
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
            while len(self._opened) >= keep:
                del self._opened[next(iter(self._opened))]
            known = self._opened[shard] = (os.getpid(), file, samples, damage)
        return known[1:]

    def _count(self, on_bad_image: str) -> list[int]:
        """Samples of each shard, by reading the headers in it."""
        lengths = []
        for shard in range(len(self.names)):
            _, samples, damage = self._open(shard)
            if damage and on_bad_image == "raise":
                raise ValueError(f"shard {self._where(shard)} {damage}")
            lengths.append(len(samples))
        return lengths

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}  # files are each process's own


class ShardCache:
    """Shards fetched from addresses that `webdataset.gopen` knows (http, https, gs, file, …), whole, to a folder.

    Args:
        folder: Where they go; shared by processes.
        most: Bytes that may lie there; the longest unused shards are removed first.
    """

    def __init__(self, folder: str | os.PathLike[str], most: float) -> None:
        self.folder = Path(folder)
        self.most = most

    def fetch(self, address: str) -> Path:
        """File of an address, fetched by the first process that asks while others wait.

        Raises:
            OSError: It cannot be fetched.
        """
        path = self.folder / address.partition("://")[2].replace("/", "_")
        with self._alone(path):
            if path.is_file():
                os.utime(path)
                return path
            self._make_room()
            logger.info("fetching %s", address)
            with replacing(path) as temporary, gopen(address) as stream, temporary.open("wb") as file:
                while piece := stream.read(1 << 20):
                    file.write(piece)
        return path

    @contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        import fcntl  # not on every system

        self.folder.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make_room(self) -> None:
        files = sorted(self.folder.glob("*.tar"), key=lambda file: file.stat().st_mtime)
        sizes = [file.stat().st_size for file in files]
        for file in files:
            if sum(sizes) <= self.most:
                return
            file.unlink(missing_ok=True)  # who has it open goes on reading
            sizes.pop(0)


def gopen(address: str) -> Any:
    """Stream of an address, by webdataset."""
    import webdataset

    return webdataset.gopen(address, "rb")


def default_cache() -> Path:
    """Folder for shards that are fetched."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "visionattn", "shards")


def is_address(root: str) -> bool:
    """Whether shards are named by an address, such as https://… or s3://…, not by a path."""
    return "://" in root


def list_samples(file: Any, label_key: str | None = None) -> tuple[list[Sample], str | None]:
    """Samples of a shard, in order, and what is wrong with its file, or None.

    Args:
        file: An open shard.
        label_key: Whether the label is in the `json` member instead of the `cls` member.
    """
    suffix = "cls" if label_key is None else "json"
    members: dict[str, dict[str, tuple[int, int]]] = {}
    damage = None
    size = os.fstat(file.fileno()).st_size
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                folder, _, base = member.name.rpartition("/")
                key, dot, extension = base.partition(".")
                if not member.isfile() or not dot or not key:
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                place = members.setdefault(f"{folder}/{key}" if folder else key, {})
                place[extension.lower()] = member.offset_data, member.size
            end = archive.offset
        file.seek(end)
        if file.read(BLOCK) != bytes(BLOCK):  # tarfile takes what is no header for the end
            damage = "is damaged or cut off (its end mark is missing)"
    except (tarfile.TarError, EOFError) as error:
        damage = f"is damaged or cut off ({error})"
    samples = []
    for key, parts in members.items():
        image = next((parts[extension] for extension in IMAGES if extension in parts), None)
        if image is not None and (suffix in parts or damage is None):
            samples.append(Sample(key, image, parts.get(suffix)))
    return samples, f"{damage} after {len(samples)} whole samples" if damage else None


def find_shards(root: str, split: str, shards: str | None = None) -> tuple[list[str], list[int]]:
    """Names of a split's shards below `root`, and their lengths where these are known.

    Raises:
        FileNotFoundError: There are none.
        ValueError: `_info.json` is not what it should be.
    """
    info = _read_info(root)
    names = SPLIT_FOLDERS[split]
    if shards is not None:
        import webdataset

        found = list(webdataset.shardlists.expand_urls(shards))
        every: dict[str, int] = {}
        for part in info.values():
            every.update(zip(part["filenames"], part["shard_lengths"], strict=True))
        return found, [every[name] for name in found] if all(name in every for name in found) else []
    for name in names:
        if name in info:
            return list(info[name]["filenames"]), list(info[name]["shard_lengths"])
    if info or is_address(root):
        raise FileNotFoundError(
            f"{root} has no _info.json with a split {' or '.join(names)}; shards='train-{{000..127}}.tar' names them"
        )
    folder = Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder of shards {root} does not exist")
    for name in names:
        inside = sorted((folder / name).glob("*.tar"))
        found = [f"{name}/{file.name}" for file in inside]
        found = found or [file.name for file in sorted(folder.glob("*.tar")) if name in file.stem.lower()]
        if found:
            return found, []
    raise FileNotFoundError(f"{root} has no shards {' or '.join(f'{name}/*.tar, *{name}*.tar' for name in names)}")


def _read_info(root: str) -> Mapping[str, Any]:
    """Splits of `_info.json`, or nothing."""
    for name in INFO_FILES:
        text = _read_text(root, name)
        if text is None:
            continue
        try:
            splits = json.loads(text)["splits"]
            for part in splits.values():
                if len(part["filenames"]) != len(part["shard_lengths"]):
                    raise ValueError("filenames and shard_lengths differ in number")
            return splits
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{os.path.join(root, name)} does not list splits with shards: {error}") from error
    return {}


def find_classes(root: str, classes: int | Sequence[str] | None) -> list[str]:
    """Class names: given, numbered, or the lines of `classes.txt`.

    Raises:
        ValueError: They are nowhere.
    """
    if isinstance(classes, int):
        return [str(number) for number in range(classes)]
    if classes is not None:
        return list(classes)
    for name in CLASS_FILES:
        text = _read_text(root, name)
        if text is not None:
            return [line.strip() for line in text.splitlines() if line.strip()]
    raise ValueError(f"classes=None: {root} has no {CLASS_FILES[0]} with a class name a line; give names or a number")


def has_classes(root: str) -> bool:
    """Whether shards come with the names of their classes."""
    return any(_read_text(root, name) is not None for name in CLASS_FILES)


def _read_text(root: str, name: str) -> str | None:
    if is_address(root):
        try:
            with gopen(f"{root.rstrip('/')}/{name}") as stream:
                return stream.read().decode()
        except (OSError, UnicodeDecodeError):
            return None
    file = Path(root, name)
    return file.read_text() if file.is_file() else None


class ShardSampler(Sampler):
    """Order of a `ShardDataset`: shard after shard, so that reading is sequential, yet shuffled.

    Shards are shuffled by `(seed, epoch)` and laid end to end; each process takes an equal stretch of that, and
    shuffles the samples of every `window` shards in it among themselves. The same seed, epoch and number of processes
    give the same order, whatever the number of loader workers. For training: in an evaluation by several processes
    mmengine's metrics want `DefaultSampler`'s order.

    Args:
        dataset: A data set with `lengths` of its shards.
        shuffle: False keeps the order of shards and samples.
        seed: Of the order, the same in all processes.
        window: Shards that are shuffled together.
        rank: Of this process; that of the process group by default.
        world_size: Processes; those of the process group by default.
        round_up: Repeat samples, so that all processes have the same number.

    Raises:
        TypeError: The data set has no shards.
        ValueError: `window` is not positive.
    """

    def __init__(
        self,
        dataset: Any,
        shuffle: bool = True,
        seed: int | None = None,
        window: int = 8,
        rank: int | None = None,
        world_size: int | None = None,
        round_up: bool = True,
    ) -> None:
        if not hasattr(dataset, "lengths"):
            raise TypeError(f"ShardSampler needs a ShardDataset, not {type(dataset).__name__}")
        if window < 1:
            raise ValueError(f"window={window} must be at least 1")
        grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = (torch.distributed.get_rank() if grouped else 0) if rank is None else rank
        self.world_size = (torch.distributed.get_world_size() if grouped else 1) if world_size is None else world_size
        self.dataset, self.shuffle, self.seed, self.window = dataset, shuffle, seed or 0, window
        self.round_up = round_up
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Number of the pass, which the order follows from."""
        self.epoch = epoch

    def _stretch(self) -> tuple[int, int]:
        """First and last position, exclusive, of this process among the shards laid end to end."""
        total, size = len(self.dataset), math.ceil(len(self.dataset) / self.world_size)
        return self.rank * size, (self.rank + 1) * size if self.round_up else min((self.rank + 1) * size, total)

    def __len__(self) -> int:
        first, last = self._stretch()
        return max(last - first, 0)

    def __iter__(self) -> Iterator[int]:
        lengths = np.asarray(self.dataset.lengths)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        order = np.arange(len(lengths))
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        laid = np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in order])
        shard_of = np.repeat(np.arange(len(order)), lengths[order])
        positions = np.arange(*self._stretch()) % len(laid)
        if not self.shuffle:
            yield from laid[positions].tolist()
            return
        groups = shard_of[positions] // self.window
        rng = np.random.default_rng((self.seed, self.epoch, self.rank))
        edges = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(groups)]
        for begin, end in itertools.pairwise(edges):
            yield from laid[rng.permutation(positions[begin:end])].tolist()


def write_shards(
    dataset: ClassificationDataset, folder: str | os.PathLike[str], prefix: str, samples_per_shard: int = 1000
) -> list[Path]:
    """Shards of a data set of encoded images, in its order: `<prefix>-000000.tar`, …, and `classes.txt`.

    Args:
        dataset: Its `content(index)` and `labels` are written; its pipeline plays no part.
        folder: Where they go.
        prefix: Name of the split, such as "train".
        samples_per_shard: Samples of each shard but the last.

    Returns:
        The shards' files.

    Raises:
        ValueError: `samples_per_shard` is not positive.
    """
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard={samples_per_shard} must be at least 1")
    import webdataset

    paths = []
    for first in range(0, len(dataset), samples_per_shard):
        path = Path(folder, f"{prefix}-{first // samples_per_shard:06d}.tar")
        with replacing(path) as temporary, webdataset.TarWriter(str(temporary), mtime=0.0) as writer:
            for index in range(first, min(first + samples_per_shard, len(dataset))):
                content = dataset.content(index)  # type: ignore[attr-defined]
                writer.write({"__key__": f"{index:08d}", _suffix(content): content, "cls": str(dataset.label(index))})
        paths.append(path)
    with replacing(Path(folder, CLASS_FILES[0])) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in dataset.classes))
    return paths


def _suffix(content: bytes) -> str:
    for start, suffix in ((b"\xff\xd8", "jpg"), (b"\x89PNG", "png"), (b"RIFF", "webp")):
        if content.startswith(start):
            return suffix
    raise ValueError(f"an image that begins with {content[:8]!r} is none of .jpg, .png, .webp")
