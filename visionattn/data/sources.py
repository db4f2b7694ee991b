# SPDX-License-Identifier: Apache-2.0
"""Which of the four kinds of classification data a path, an address or a name means."""

from __future__ import annotations

import itertools
import os
import tarfile
from pathlib import Path
from typing import Any

from visionattn.data.datasets import SPLIT_FOLDERS
from visionattn.data.shards import INFO_FILES, is_address

LAYOUTS = (
    "a folder with train/CLASS/*.jpg and val/CLASS/*.jpg, or with class folders alone; with train.tar and val.tar, or "
    "train/CLASS.tar and val/CLASS.tar; with WebDataset shards train-*.tar and val-*.tar; an address of shards; or "
    "hfds/NAME, a Hugging Face dataset"
)
HUB, SHARDS = "hfds/", "wds/"


def recognise(data: str | os.PathLike[str]) -> dict[str, Any]:
    """Type and place of a data set's config: a folder, tar files, shards or a Hugging Face dataset.

    Args:
        data: A folder; an address of shards, or `wds/` and a folder or address; or `hfds/` and a name.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It is a file, or a tar file in it is damaged.
    """
    name = os.fspath(data)
    if name.startswith(HUB) and not Path(name).exists():
        return {"type": "HubDataset", "name": name.removeprefix(HUB)}
    if name.startswith(SHARDS) and not Path(name).exists():
        return {"type": "ShardDataset", "root": name.removeprefix(SHARDS)}
    if is_address(name):
        return {"type": "ShardDataset", "root": name}
    root = Path(name)
    if not root.exists():
        raise FileNotFoundError(f"data folder {root} does not exist; data are {LAYOUTS}")
    if not root.is_dir():
        raise ValueError(f"data={name!r} is a file; data are {LAYOUTS}")
    archive = next(_archives(root), None)
    if any((root / file).is_file() for file in INFO_FILES) or (archive is not None and is_shard(archive)):
        return {"type": "ShardDataset", "root": name}
    return {"type": "ImageFolderDataset" if archive is None else "TarDataset", "root": name}


def is_shard(path: Path, members: int = 50) -> bool:
    """Whether a tar file begins with samples of WebDataset, with labels beside the images.

    Raises:
        ValueError: It is no tar file.
    """
    try:
        with tarfile.open(path, "r|") as archive:
            names = [member.name for member in itertools.islice(archive, members)]
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path} is damaged or no tar file: {error}") from error
    return any(name.endswith((".cls", ".json")) for name in names)


def _archives(root: Path) -> Any:
    """Tar files of the training split, or of any."""
    for split in (*SPLIT_FOLDERS["train"], *SPLIT_FOLDERS["test"], "."):
        yield from sorted((root / split).glob("*.tar"))
