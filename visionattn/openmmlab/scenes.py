# SPDX-License-Identifier: Apache-2.0
"""The scenes of `visionattn.data.scenes` as mmdet's and mmsegmentation's own datasets, made on first use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmengine.registry import DATASETS

from visionattn.data.scenes import CLASSES, DIGITS, SPLITS, SceneSettings, make_scenes

if TYPE_CHECKING:
    from mmdet.datasets import CocoDataset
    from mmseg.datasets import BaseSegDataset

# Earth tones under a bright one for digits.
DIGIT_PALETTE = (
    (230, 60, 60), (255, 140, 0), (250, 210, 40), (140, 210, 40), (30, 150, 70),
    (40, 200, 200), (60, 130, 240), (110, 70, 220), (220, 70, 220), (255, 150, 190),
)  # fmt: skip
CLASS_PALETTE = ((70, 70, 70), (150, 80, 60), (80, 130, 60), (150, 140, 120), (250, 210, 40))


# Functions, as mmdet and mmsegmentation are imported only by who builds a dataset of theirs.
@DATASETS.register_module("ScenesDetection")
def scenes_detection(
    data_root: str | os.PathLike[str],
    split: str = "training",
    scenes: Mapping[str, int] | None = None,
    metainfo: Mapping[str, Any] | None = None,
    **options: Any,
) -> CocoDataset:
    """One split of the scenes as mmdet's CocoDataset, its classes the ten digits; needs the extra `detection`.

    Args:
        data_root: Folder of the scenes, made where it is missing.
        split: "training" or "validation".
        scenes: Arguments of `SceneSettings`; the same in every split of a config.
        metainfo: Entries beside the classes and their colours.
        options: Further arguments of CocoDataset, such as its `pipeline`.

    Raises:
        ValueError: An argument is none of the allowed values, or `data_root` holds something else.
    """
    _make(data_root, split, scenes)
    from mmdet.datasets import CocoDataset

    return CocoDataset(
        data_root=str(data_root),
        ann_file=f"annotations/instances_{split}.json",
        data_prefix={"img": f"images/{split}/"},
        metainfo={"classes": DIGITS, "palette": DIGIT_PALETTE, **(metainfo or {})},
        **options,
    )


@DATASETS.register_module("ScenesSegmentation")
def scenes_segmentation(
    data_root: str | os.PathLike[str],
    split: str = "training",
    scenes: Mapping[str, int] | None = None,
    metainfo: Mapping[str, Any] | None = None,
    **options: Any,
) -> BaseSegDataset:
    """One split of the scenes as mmsegmentation's BaseSegDataset; needs the extra `segmentation`.

    Its classes are four backgrounds and the digits. As in ADE20K, value 0 of the masks is ignored
    (`reduce_zero_label`).

    Args:
        data_root: Folder of the scenes, made where it is missing.
        split: "training" or "validation".
        scenes: Arguments of `SceneSettings`; the same in every split of a config.
        metainfo: Entries beside the classes and their colours.
        options: Further arguments of BaseSegDataset, such as its `pipeline`.

    Raises:
        ValueError: An argument is none of the allowed values, or `data_root` holds something else.
    """
    _make(data_root, split, scenes)
    from mmseg.datasets import BaseSegDataset

    return BaseSegDataset(
        data_root=str(data_root),
        data_prefix={"img_path": f"images/{split}", "seg_map_path": f"annotations/{split}"},
        metainfo={"classes": CLASSES, "palette": CLASS_PALETTE, **(metainfo or {})},
        reduce_zero_label=True,
        **options,
    )


def _make(data_root: str | os.PathLike[str], split: str, scenes: Mapping[str, int] | None) -> None:
    """Check the arguments, then make what is missing."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r} must be one of {', '.join(map(repr, SPLITS))}")
    known = SceneSettings.__dataclass_fields__
    unknown = sorted(set(scenes or {}) - set(known))
    if unknown:
        raise ValueError(f"scenes has unknown keys {unknown}; known: {', '.join(known)}")
    make_scenes(data_root, SceneSettings(**(scenes or {})))
