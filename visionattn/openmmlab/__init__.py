# SPDX-License-Identifier: Apache-2.0
"""Training on mmengine's Runner. Importing this registers our models, data sets, metrics and hooks with mmengine.

Needs the extra `train` (`pip install "visionattn[train]"`).
"""

from mmengine.registry import DATASETS, FUNCTIONS

from visionattn.data import DigitsDataset, ImageFolderDataset, drop_bad
from visionattn.openmmlab.classifier import TimmClassifier, TimmParamGroups, TopKAccuracy
from visionattn.openmmlab.config import find_config, load_config
from visionattn.openmmlab.hooks import AtomicCheckpointHook, EpochSeedHook, MetricsHook, ProgressHook
from visionattn.openmmlab.mmcv_ext import install as _install_mmcv_ext
from visionattn.openmmlab.runner import AtomicRunner, read_checkpoint

for _registry, _item in ((DATASETS, DigitsDataset), (DATASETS, ImageFolderDataset), (FUNCTIONS, drop_bad)):
    _registry.register_module(module=_item, force=True)

_install_mmcv_ext()  # where mmcv is installed without its compiled extension

__all__ = [
    "AtomicCheckpointHook",
    "AtomicRunner",
    "EpochSeedHook",
    "MetricsHook",
    "ProgressHook",
    "TimmClassifier",
    "TimmParamGroups",
    "TopKAccuracy",
    "find_config",
    "load_config",
    "read_checkpoint",
]
