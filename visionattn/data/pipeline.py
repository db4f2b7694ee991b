# SPDX-License-Identifier: Apache-2.0
"""Pipelines from a config: a list of albumentations transforms, or one description of ImageNet's."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

# albumentations asks the network for a newer version of itself when imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A  # noqa: E402
from albumentations.pytorch import ToTensorV2  # noqa: E402

from visionattn.data.imagenet import DESCRIPTIONS, ImagePipeline, build_description  # noqa: E402

TRANSFORMS: dict[str, type] = {
    name: value
    for name, value in {**vars(A), "ToTensorV2": ToTensorV2}.items()
    if isinstance(value, type) and issubclass(value, (A.BasicTransform, A.BaseCompose))
}


def build_pipeline(transforms: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> A.Compose | ImagePipeline:
    """Composed transform of a list of `dict(type="Name", **arguments)`, as `pipeline(image=array)["image"]`.

    Args:
        transforms: Transforms in order; `type` is the name of an albumentations class. A group such as `OneOf`
            takes its members as a list of such dicts under `transforms`. Or one description of ImageNet's pipelines,
            `dict(type="ImageNetTrain", …)` or `dict(type="ImageNetEval", …)`.

    Raises:
        TypeError: An entry is not a dict with a `type`.
        ValueError: A name or an argument is unknown to albumentations; nearest names are offered.
    """
    entries = [transforms] if isinstance(transforms, Mapping) else list(transforms)
    described = [entry["type"] for entry in entries if isinstance(entry, Mapping) and entry.get("type") in DESCRIPTIONS]
    if described and len(entries) > 1:
        raise ValueError(f"{described[0]} is a whole pipeline and stands alone; its `extra` takes further transforms")
    if described:
        return build_description(entries[0])
    return A.Compose([build_transform(entry) for entry in entries])


def build_transform(entry: Mapping[str, Any]) -> A.BasicTransform | A.BaseCompose:
    """One transform from `dict(type="Name", **arguments)`; raises as `build_pipeline` does."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("type"), str):
        raise TypeError(f"a pipeline entry must be a dict with a string `type`, but got {entry!r}")
    arguments = dict(entry)
    name = arguments.pop("type")
    if name not in TRANSFORMS:
        near = difflib.get_close_matches(name, TRANSFORMS, n=3)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise ValueError(f"type={name!r} in the pipeline is not an albumentations transform{hint}")
    if "transforms" in arguments:
        arguments["transforms"] = [build_transform(member) for member in arguments["transforms"]]
    with warnings.catch_warnings():
        # Unknown arguments only warn there, so that a typing mistake would become a default.
        warnings.filterwarnings("error", message=r"Argument\(s\)")
        try:
            return TRANSFORMS[name](**arguments)
        except (TypeError, UserWarning, ValueError) as error:
            raise ValueError(f"pipeline entry {name} with {arguments}: {error}") from error
