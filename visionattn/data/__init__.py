# SPDX-License-Identifier: Apache-2.0
"""Image data for training: embedded datasets, folders of class folders, albumentations pipelines.

Needs the extra `train` (`pip install "visionattn[train]"`).
"""

from visionattn.data.datasets import ClassificationDataset, DigitsDataset, ImageFolderDataset, drop_bad
from visionattn.data.images import read_image
from visionattn.data.pipeline import build_pipeline

__all__ = [
    "ClassificationDataset",
    "DigitsDataset",
    "ImageFolderDataset",
    "build_pipeline",
    "drop_bad",
    "read_image",
]
