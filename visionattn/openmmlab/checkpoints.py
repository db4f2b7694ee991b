# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that mmengine wrote, read without running code from them; its own loader reads them the same way."""

from __future__ import annotations

import importlib
import os
import pickle
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import Tensor

from visionattn._files import replacing
from visionattn.models import _checkpoint


def _mmengine_objects() -> list[Any]:
    """What mmengine's checkpoints hold besides tensors and plain values: histories and NumPy numbers."""
    multiarray = importlib.import_module("numpy._core" if hasattr(np, "_core") else "numpy.core").multiarray
    dtypes = {type(np.dtype(kind)) for kind in "?bhilqBHILQefdSUO"}
    # NumPy 2 moved its functions; files know them by the name of the version that wrote them.
    functions = [
        (function, f"numpy.{core}.multiarray.{function.__name__}")
        for function in (multiarray.scalar, multiarray._reconstruct)
        for core in ("core", "_core")
    ]
    return [HistoryBuffer, (_statistic, "builtins.getattr"), np.ndarray, np.dtype, *functions, *sorted(dtypes, key=str)]


def _statistic(owner: Any, name: str) -> Any:
    """What histories need `getattr` for when they are read: their own statistics, and nothing else."""
    if owner is not HistoryBuffer or name not in ("min", "max", "mean", "current"):
        raise pickle.UnpicklingError(f"Unsupported global: GLOBAL builtins.getattr of {owner} {name!r}")
    return getattr(HistoryBuffer, name)


def read_checkpoint(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """Content of a training checkpoint, read with `weights_only=True`.

    mmengine's histories and NumPy's numbers and arrays are accepted besides tensors and plain values.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is truncated, is no checkpoint, holds code, or has no `state_dict` of tensors.
    """
    content = _read(path, map_location)
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"checkpoint {path} has no 'state_dict' of tensors; it was not written by `visionattn train`")
    return content


def install() -> None:
    """Let mmengine's loader, and with it `init_detector`, `init_model` and every Runner, read files in this way.

    Files from disk and over HTTP, `torchvision://`, `open-mmlab://` and `mmcls://` among them. Other stores keep
    mmengine's loader, which follows PyTorch's default, `weights_only=True`.
    """
    loader = mmengine_checkpoint.CheckpointLoader
    loader.register_scheme("", load_from_local, force=True)
    loader.register_scheme(("http://", "https://"), load_from_http, force=True)
    # mmengine's other schemes call these by name.
    mmengine_checkpoint.load_from_local = load_from_local
    mmengine_checkpoint.load_from_http = load_from_http


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Content of a local file; see `read_checkpoint` for errors."""
    return _read(os.path.expanduser(filename), map_location)


def load_from_http(
    filename: str, map_location: Any = None, model_dir: str | None = None, progress: bool = os.isatty(0)
) -> Any:
    """Content of a file behind an address, kept in PyTorch's cache; process 0 fetches it for all.

    Args:
        filename: The address. A name such as `resnet50-0676ba61.pth` says how the file's hash begins.
        map_location: As for `torch.load`.
        model_dir: Folder to keep the file in.
        progress: Show a bar.
    """
    folder = Path(model_dir or Path(torch.hub.get_dir(), "checkpoints"))
    name = Path(urlsplit(filename).path).name
    target = folder / name
    rank, world = get_dist_info()
    if rank == 0 and not target.is_file():
        found = torch.hub.HASH_REGEX.search(name)
        with replacing(target) as temporary:
            torch.hub.download_url_to_file(filename, str(temporary), found.group(1) if found else None, progress)
    if world > 1:
        torch.distributed.barrier()
    return _read(target, map_location)


def _read(path: str | os.PathLike[str], map_location: Any) -> Any:
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    content = _checkpoint.read_checkpoint(path, _mmengine_objects(), map_location)
    return {"state_dict": content} if Path(path).suffix == ".safetensors" else content
