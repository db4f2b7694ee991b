# SPDX-License-Identifier: Apache-2.0
"""`in_channels` of necks and heads from the model that a TimmBackbone names, when a config is read or a model built."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, Registry, build_model_from_cfg

from visionattn.openmmlab.backbone import TimmBackbone, plan, taken

UNSET = (None, "auto")
# Necks of one map, whose `in_channels` is a number.
SINGLE_MAP_NECKS = ("DilatedEncoder", "CTResNetNeck")
HEADS = ("decode_head", "auxiliary_head", "panoptic_head")


def fill_channels(cfg: Any) -> Any:
    """Give what follows a TimmBackbone the `in_channels` that it lacks, in place.

    The first neck gets the channels of all maps, without a neck each of `decode_head`, `auxiliary_head` and
    `panoptic_head` those of its `in_index`: where `in_channels` is missing, None or "auto". Other heads are looked at
    where they say "auto". No weights are made or loaded for it.

    Args:
        cfg: A config, or the config of a model; models inside models are looked at too.

    Returns:
        `cfg`.

    Raises:
        TypeError: If the model does not take an argument.
        ValueError: If the backbone's model is unknown, or has no such levels.
    """
    if isinstance(cfg, Config):
        fill_channels(cfg.get("model"))
    elif isinstance(cfg, Mapping):
        if _is_timm_backbone(cfg.get("backbone")):
            _fill(cfg)
        for value in cfg.values():
            fill_channels(value)
    return cfg


def _is_timm_backbone(cfg: Any) -> bool:
    if not isinstance(cfg, Mapping):
        return False
    kind = cfg.get("type")
    return kind is TimmBackbone or (isinstance(kind, str) and kind.rsplit(".", 1)[-1] == "TimmBackbone")


def _fill(model: Any) -> None:
    neck = model.get("neck")
    necks = neck if isinstance(neck, (list, tuple)) else [] if neck is None else [neck]
    missing = [(part, part.get("type") in SINGLE_MAP_NECKS) for part in necks[:1] if _lacks(part)]
    if not necks:
        for key, value in model.items():
            for part in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(part, Mapping) and key != "backbone" and _lacks(part, key in HEADS):
                    missing.append((part, isinstance(part.get("in_index"), int)))
    if not missing:
        return
    channels = channels_of(model["backbone"])
    for part, is_single in missing:
        part["in_channels"] = _of_index(channels, part.get("in_index", -1 if is_single else None))


def _lacks(part: Mapping[str, Any], counts_missing: bool = True) -> bool:
    return part.get("in_channels", None if counts_missing else 0) in UNSET


def _of_index(channels: Sequence[int], index: int | Sequence[int] | None) -> int | list[int]:
    if index is None:
        return list(channels)
    return channels[index] if isinstance(index, int) else [channels[i] for i in index]


def channels_of(backbone: Mapping[str, Any]) -> list[int]:
    """Channels of the maps of a TimmBackbone, by its config; no weights are made or loaded.

    Raises:
        TypeError: If the model does not take an argument.
        ValueError: If the model is unknown, or has no such levels.
    """
    own = set(inspect.signature(TimmBackbone.__init__).parameters) - {"kwargs"}
    args = {key: value for key, value in backbone.items() if key not in own and key != "type"}
    infos = plan(backbone["name"], args, None)[0].infos
    return [infos[i]["num_chs"] for i in taken(infos, backbone.get("out_indices"), backbone["name"])]


def _build_filled(cfg: Any, registry: Registry, default_args: Any = None) -> Any:
    """Mmengine's `build_model_from_cfg` for models around a TimmBackbone, whose channels are filled in first."""
    if isinstance(cfg, Mapping) and _is_timm_backbone(cfg.get("backbone")):
        cfg = fill_channels(deepcopy(cfg))
    return build_model_from_cfg(cfg, registry, default_args)


def fill_channels_when_built(registry: Registry = MODELS) -> None:
    """Let mmengine, mmdet and mmsegmentation call `fill_channels` on the models that they build.

    Registries that are made later, as those of packages that are not imported yet, take it from their parent.
    """
    if registry.build_func is build_model_from_cfg:
        registry.build_func = _build_filled
    for child in registry.children.values():
        fill_channels_when_built(child)
