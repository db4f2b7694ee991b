# SPDX-License-Identifier: Apache-2.0
"""Image data for training: embedded data sets, folders, tar files, shards, Hugging Face's; pipelines for all of them.

Needs the extra `train` (`pip install "visionattn[train]"`).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visionattn.data.archives import HubDataset, TarDataset
    from visionattn.data.datasets import (
        ClassificationDataset,
        DigitsDataset,
        EncodedDataset,
        ImageFolderDataset,
        drop_bad,
    )
    from visionattn.data.imagenet import ImageNetEval, ImageNetTrain
    from visionattn.data.images import read_image
    from visionattn.data.pipeline import build_pipeline
    from visionattn.data.shards import ShardDataset, ShardSampler, write_shards
    from visionattn.data.sources import recognise

# Module of each public name, imported when it is asked for: images are read without PyTorch.
_PLACES = {
    **dict.fromkeys(("HubDataset", "TarDataset"), "archives"),
    **dict.fromkeys(
        ("ClassificationDataset", "DigitsDataset", "EncodedDataset", "ImageFolderDataset", "drop_bad"), "datasets"
    ),
    **dict.fromkeys(("ImageNetEval", "ImageNetTrain"), "imagenet"),
    "read_image": "images",
    "build_pipeline": "pipeline",
    **dict.fromkeys(("ShardDataset", "ShardSampler", "write_shards"), "shards"),
    "recognise": "sources",
}

__all__ = [
    "ClassificationDataset",
    "DigitsDataset",
    "EncodedDataset",
    "HubDataset",
    "ImageFolderDataset",
    "ImageNetEval",
    "ImageNetTrain",
    "ShardDataset",
    "ShardSampler",
    "TarDataset",
    "build_pipeline",
    "drop_bad",
    "read_image",
    "recognise",
    "write_shards",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
