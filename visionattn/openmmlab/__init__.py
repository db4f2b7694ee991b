# SPDX-License-Identifier: Apache-2.0
"""Training on mmengine's Runner. Importing this registers our models, data sets, metrics and hooks with mmengine.

Needs the extra `train` (`pip install "visionattn[train]"`).
"""

from mmengine.registry import DATA_SAMPLERS, DATASETS, FUNCTIONS

from visionattn.data import (
    DigitsDataset,
    HubDataset,
    ImageFolderDataset,
    ShardDataset,
    ShardSampler,
    TarDataset,
    drop_bad,
)
from visionattn.openmmlab.backbone import TimmBackbone
from visionattn.openmmlab.channels import fill_channels, fill_channels_when_built
from visionattn.openmmlab.checkpoints import install as _read_safely
from visionattn.openmmlab.checkpoints import read_checkpoint
from visionattn.openmmlab.classifier import TimmClassifier, TopKAccuracy
from visionattn.openmmlab.config import find_config, load_config
from visionattn.openmmlab.hooks import AtomicCheckpointHook, EpochSeedHook, MetricsHook, ProgressHook
from visionattn.openmmlab.loops import ResumableIterLoop
from visionattn.openmmlab.mixed_precision import AutocastOptimWrapper
from visionattn.openmmlab.mmcv_ext import install as _install_mmcv_ext
from visionattn.openmmlab.optim import TimmParamGroups
from visionattn.openmmlab.packages import install as _find_packages
from visionattn.openmmlab.runner import AtomicRunner
from visionattn.openmmlab.samplers import RepeatedAugmentation
from visionattn.openmmlab.scenes import scenes_detection, scenes_segmentation
from visionattn.openmmlab.schedules import TimmOptimizer, TimmSchedule
from visionattn.openmmlab.throughput import ThroughputHook

for _registry, _item in (
    *((DATASETS, kind) for kind in (DigitsDataset, HubDataset, ImageFolderDataset, ShardDataset, TarDataset)),
    (DATA_SAMPLERS, ShardSampler),
    (FUNCTIONS, drop_bad),
):
    _registry.register_module(module=_item, force=True)

fill_channels_when_built()
_find_packages()  # whose configs ours are based on
_read_safely()  # mmengine's own loader too
_install_mmcv_ext()  # where mmcv is installed without its compiled extension

__all__ = [
    "AtomicCheckpointHook",
    "AtomicRunner",
    "AutocastOptimWrapper",
    "EpochSeedHook",
    "MetricsHook",
    "ProgressHook",
    "RepeatedAugmentation",
    "ResumableIterLoop",
    "ThroughputHook",
    "TimmBackbone",
    "TimmClassifier",
    "TimmOptimizer",
    "TimmParamGroups",
    "TimmSchedule",
    "TopKAccuracy",
    "fill_channels",
    "find_config",
    "load_config",
    "read_checkpoint",
    "scenes_detection",
    "scenes_segmentation",
]
