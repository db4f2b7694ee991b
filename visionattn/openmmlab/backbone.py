# SPDX-License-Identifier: Apache-2.0
"""Any timm model as the backbone of mmdet's detectors and mmsegmentation's segmentors."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.layers import LayerNorm2d
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from visionattn import accelerate as accelerate_model
from visionattn import create_model, list_models
from visionattn.models import Pyramid, VisionModel, convert, dense_args, family_of, read_checkpoint
from visionattn.models._checkpoint import unwrap

# What lets models of timm take images of any size.
FREE_SIZE = {"dynamic_img_size": True, "dynamic_img_pad": True}


@MODELS.register_module()
class TimmBackbone(BaseModule):
    """Feature maps of any timm model, ours (`va_*`) or timm's own, for the necks and heads of mmdet and mmsegmentation.

    A model of ours is built as its authors detect and segment with it: norms on outputs, windows that do not shrink
    (`visionattn.models.dense_args`). Images may have any size where the model can; models of timm with fixed windows or
    patches are asked to take any too. As with all backbones of mmdet and mmsegmentation, `init_weights` loads the
    weights to start from.

    Args:
        name: timm model name, with or without a tag; or a model.
        out_indices: Levels whose maps are returned, counted as timm's `feature_info` counts them, in order, negative
            ones from the end; None for the last one at each stride from 4 on.
        pretrained: Start from published weights: those of the name's tag, or of the tag given.
        checkpoint: Start from the weights in this file, `.pth`, `.pt` or `.safetensors`, in our names or the authors',
            of a classifier or of a backbone. No code in it is run. What does not fit is an error.
        frozen_stages: Parts that are not trained and stay in evaluation mode: -1 none, 0 the stem, n also the first n
            stages.
        norm_eval: Keep batch norms in evaluation mode.
        output_norms: A LayerNorm of its own for every map (True), none (False), or for the levels listed; None for what
            the authors' dense version of the model has, and none for models of timm.
        drop_path_rate: Drop-path rate of the last block, from 0 to less than 1; None for the model's own.
        grad_checkpointing: Compute blocks again in the backward pass, to save memory.
        accelerate: Let our ops compute the window and halo attention of models of timm.
        init_cfg: Must be None: `pretrained` and `checkpoint` say what to start from.
        **kwargs: Further arguments of the model.

    Attributes:
        model: The timm model.
        channels: Channels of each map.
        strides: Stride of each map, in pixels.

    Raises:
        TypeError: If the model does not take an argument.
        ValueError: If the model is unknown, or has no such levels or stages.
    """

    def __init__(
        self,
        name: str | nn.Module,
        out_indices: Sequence[int] | None = None,
        pretrained: bool | str = False,
        checkpoint: str | os.PathLike[str] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        output_norms: bool | Sequence[int] | None = None,
        drop_path_rate: float | None = None,
        grad_checkpointing: bool = False,
        accelerate: bool = False,
        init_cfg: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self._start: _Start | None = None
        if init_cfg is not None:
            raise ValueError(f"init_cfg={init_cfg} must be None; `checkpoint` names a file of weights to start from")
        if checkpoint is not None and pretrained:
            raise ValueError(f"pretrained={pretrained!r} and checkpoint={str(checkpoint)!r} exclude each other")
        own_norms: tuple[int, ...] = ()
        if isinstance(name, nn.Module):
            model = _given(name, kwargs, pretrained, checkpoint, drop_path_rate, output_norms)
            infos = _infos(model)
            take = taken(infos, out_indices, type(model).__name__)
        else:
            if isinstance(pretrained, str):
                name, pretrained = f"{name.split('.', 1)[0]}.{pretrained}", True
            if drop_path_rate is not None:
                kwargs["drop_path_rate"] = drop_path_rate
            facts, args = plan(name, kwargs, output_norms)
            infos = facts.infos
            take = taken(infos, out_indices, name)
            if not facts.is_pyramid:
                own_norms = _own_norms(output_norms, take, name)
            model = create_model(name, num_classes=0, **args)
            patches: Any = getattr(model, "patch_embed", None)
            if getattr(patches, "strict_img_size", True) is False:
                patches.dynamic_img_pad = True  # timm's Swin has no argument for it
            if pretrained or checkpoint is not None:
                self._start = _Start(name, args, checkpoint)
        self.channels = [infos[i]["num_chs"] for i in take]
        self.strides = [infos[i]["reduction"] for i in take]
        self.out_indices = tuple(take)
        self.norm_eval = norm_eval
        if grad_checkpointing:
            model.set_grad_checkpointing(True)
        _prune(model, take)
        self.model = model
        self.norms = nn.ModuleDict({str(i): LayerNorm2d(infos[i]["num_chs"]) for i in own_norms})
        if accelerate:
            MMLogger.get_current_instance().info(str(accelerate_model(model)))
        self._frozen = _freeze(model, frozen_stages)
        self.train()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images `(B, C, H, W)` to one map `(B, channels[i], ~H / strides[i], ~W / strides[i])` for each level."""
        maps = self.model.forward_intermediates(x, indices=list(self.out_indices), intermediates_only=True)
        return tuple(
            self.norms[str(i)](feature) if str(i) in self.norms else feature
            for i, feature in zip(self.out_indices, maps, strict=True)
        )

    def init_weights(self) -> None:
        """Loads the weights to start from; without any the model's own initial values stay.

        mmengine's Runner calls it before training. Models that load a whole detector or segmentor do without.

        Raises:
            FileNotFoundError: If there is no file `checkpoint`.
            ValueError: If `checkpoint` does not fit, or published weights cannot be fetched.
        """
        if self._start is not None:
            self.model.load_state_dict(self._start.load(self.out_indices).state_dict())
        self._is_init = True

    def train(self, mode: bool = True) -> TimmBackbone:
        """Switches to training, but for frozen parts and, with `norm_eval`, batch norms."""
        super().train(mode)
        for name in self._frozen:
            self.model.get_submodule(name).eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


# --- building ---------------------------------------------------------------------------------------------------------


def _given(model: nn.Module, kwargs: Mapping[str, Any], *others: Any) -> Any:
    """A model that was built by the caller, who has decided all that concerns its building."""
    if kwargs or any(other not in (None, False) for other in others):
        raise ValueError(f"name is a {type(model).__name__}; arguments that say how to build a model need its name")
    return _with_features(model, type(model).__name__)


class Facts(NamedTuple):
    """What is known of a model before it is built: its levels, and what it takes."""

    infos: list[dict[str, Any]]
    is_pyramid: bool
    free_size: Mapping[str, Any]


_FACTS: dict[str, Facts] = {}


def _facts(name: str, args: Mapping[str, Any]) -> Facts:
    """Facts of a model, remembered: large ones take a second, and config and model ask in turn."""
    key = f"{name} {sorted(args.items())!r}"
    if key not in _FACTS:
        model = _with_features(_on_meta(name, args), name)
        known = () if isinstance(model, VisionModel) else inspect.signature(type(model).__init__).parameters
        free_size = {option: value for option, value in FREE_SIZE.items() if option in known}
        if len(_FACTS) >= 64:
            _FACTS.clear()
        _FACTS[key] = Facts(_infos(model), isinstance(model, Pyramid), free_size)
    return _FACTS[key]


def plan(
    name: str, kwargs: Mapping[str, Any], output_norms: bool | Sequence[int] | None
) -> tuple[Facts, dict[str, Any]]:
    """Facts of a TimmBackbone's model, and all arguments to build it with."""
    args = {**dense_args(name), **kwargs}
    facts = _facts(name, args)
    if facts.is_pyramid and output_norms is not None:
        args["output_norms"] = output_norms
        _facts(name, args)  # which names levels that are not there
    return facts, {**facts.free_size, **args}


def _on_meta(name: str, args: Mapping[str, Any]) -> nn.Module:
    try:
        with torch.device("meta"):
            return create_model(name, num_classes=0, **args)
    except TypeError as error:
        raise TypeError(
            f"{name} does not take one of {sorted(args)}: {error}. A config that replaces the backbone of its base "
            "needs `_delete_=True` in the new one"
        ) from error


def _prune(model: Any, take: Sequence[int]) -> Any:
    """Drop the levels that no output needs, and with them parameters that would get no gradient."""
    model.prune_intermediate_layers(list(take), prune_norm=True, prune_head=True)
    return model


def _with_features(model: nn.Module, name: str) -> Any:
    missing = [need for need in ("forward_intermediates", "prune_intermediate_layers") if not hasattr(model, need)]
    if missing:
        raise ValueError(f"{name} cannot hand out feature maps: it lacks {' and '.join(missing)}")
    return model


def _infos(model: Any) -> list[dict[str, Any]]:
    info = model.feature_info
    return [dict(row) for row in getattr(info, "info", info)]


def taken(infos: Sequence[Mapping[str, Any]], out_indices: Sequence[int] | None, name: str) -> list[int]:
    """Levels to return, counted from the start."""
    if out_indices is None:
        last = {info["reduction"]: i for i, info in enumerate(infos) if info["reduction"] >= 4}
        return sorted(last.values())
    count = len(infos)
    take = [i + count if i < 0 else i for i in out_indices]
    if not take or take != sorted(set(take)) or take[0] < 0 or take[-1] >= count:
        strides = ", ".join(str(info["reduction"]) for info in infos)
        raise ValueError(
            f"out_indices={tuple(out_indices)} must be increasing indices of the {count} levels of {name}, whose "
            f"strides are {strides}"
        )
    return take


def _own_norms(output_norms: bool | Sequence[int] | None, take: Sequence[int], name: str) -> tuple[int, ...]:
    """Levels that get a norm after the model, which has none."""
    if output_norms is None or output_norms is False:
        return ()
    levels = tuple(take) if output_norms is True else tuple(output_norms)
    if set(levels) - set(take):
        raise ValueError(f"output_norms={output_norms} must be among the levels {tuple(take)} that {name} returns")
    return levels


class _Start(NamedTuple):
    """Where weights come from: the file `checkpoint`, or those published under the model's name."""

    name: str
    args: Mapping[str, Any]
    checkpoint: str | os.PathLike[str] | None

    def load(self, take: Sequence[int]) -> nn.Module:
        """The model with these weights, pruned to the levels `take`."""
        if self.checkpoint is None:
            return _prune(create_model(self.name, pretrained=True, num_classes=0, **self.args), take)
        model: Any = create_model(self.name, num_classes=0, **self.args)
        pruned = _prune(_on_meta(self.name, self.args), take)
        _load(model, self.checkpoint, free=sorted(set(model.state_dict()) - set(pruned.state_dict())))
        return _prune(model, take)


def _load(model: Any, path: str | os.PathLike[str], free: Sequence[str]) -> None:
    """Load a file into a model. A classifier in it is left out, and what is `free` may be missing."""
    entries: Any = read_checkpoint(path)
    name = model.pretrained_cfg["architecture"]
    is_ours = name in list_models()
    rename = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if rename is not None and not is_ours:
        entries = rename(unwrap(entries, str(path)), model)
    heads = model.pretrained_cfg.get("classifier") or ()
    heads = [head.split(".", 1)[0] + "." for head in ((heads,) if isinstance(heads, str) else heads)]
    family = family_of(name)
    key_maps = () if family is None else family.key_maps
    model.load_state_dict(convert(entries, model, key_maps, free=(*heads, *free), source=str(path)), strict=False)


# --- freezing ---------------------------------------------------------------------------------------------------------


def _freeze(model: Any, stages: int) -> list[str]:
    """Stop training of the stem and the first stages; returns what is frozen as a whole."""
    if stages < 0:
        return []
    before = {name for name, p in model.named_parameters() if not p.requires_grad}
    if isinstance(model, VisionModel):
        if stages > len(model.levels):
            raise ValueError(f"frozen_stages={stages} must be at most {len(model.levels)}, the number of stages")
        model.freeze(stages)
    else:
        _freeze_groups(model, stages)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad} - before
    return list(_whole(model, frozen))


def _freeze_groups(model: Any, stages: int) -> None:
    if not hasattr(model, "group_matcher"):
        raise ValueError(f"frozen_stages={stages}: {type(model).__name__} does not tell its stages; use -1")
    groups = group_parameters(model, model.group_matcher(coarse=True))
    numbers = sorted(groups)
    if stages >= len(numbers):
        raise ValueError(f"frozen_stages={stages} must be at most {len(numbers) - 1} for {type(model).__name__}")
    parameters = dict(model.named_parameters())
    for number in numbers[: stages + 1]:
        for name in groups[number]:
            parameters[name].requires_grad_(False)


def _whole(module: nn.Module, frozen: set[str], prefix: str = "") -> Iterator[str]:
    """Names of the largest submodules all of whose parameters are among `frozen`."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        own = [f"{path}.{p}" for p, _ in child.named_parameters()]
        if own and frozen.issuperset(own):
            yield path
        else:
            yield from _whole(child, frozen, f"{path}.")
