# SPDX-License-Identifier: Apache-2.0
"""Parameter groups of classifiers, detectors and segmentors around a timm model."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from timm.optim import param_groups_layer_decay
from torch import nn

from visionattn.models import Pyramid
from visionattn.openmmlab.backbone import TimmBackbone


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TimmParamGroups:
    """Optimizer over timm's parameter groups: no weight decay on vectors and on what the model names.

    In a TimmClassifier the groups are those of its model. In detectors and segmentors on a TimmBackbone, layers are
    those of the backbone's model; necks, heads and norms that the backbone adds count as after its last layer.

    Args:
        optim_wrapper_cfg: mmengine's optim wrapper config, with its `optimizer`.
        paramwise_cfg: `dict(layer_decay=0.75)` multiplies the learning rate by so much from layer to layer towards the
            stem; None leaves it. Layers are blocks, unless `stage_layers=(1, 1, 9, 1)` says how many layers the blocks
            of each stage of a pyramid form, or `layer_blocks=3` how many blocks in turn form one; what leads from one
            stage to the next is of the latter's first layer then. `backbone_lr_mult=0.1` multiplies the rate of the
            whole model inside a detector or segmentor. `spared=("query_embed",)` exempts parameters from decay by
            parts of their names, and `lr_mult={"offset": 0.01}` multiplies the rate of parameters by such parts.

    Raises:
        ValueError: `paramwise_cfg` has an unknown key, or a factor is not above 0; or layers are given without a
            `layer_decay`, in two ways or not for the stages of the model.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        self.wrapper = dict(optim_wrapper_cfg)
        options = dict(paramwise_cfg or {})
        self.layer_decay = options.pop("layer_decay", None)
        self.backbone_lr_mult = options.pop("backbone_lr_mult", 1.0)
        self.spared = tuple(options.pop("spared", ()))
        self.lr_mult = dict(options.pop("lr_mult", {}))
        self.stage_layers = options.pop("stage_layers", None)
        self.layer_blocks = options.pop("layer_blocks", None)
        if options:
            known = "layer_decay, stage_layers, layer_blocks, backbone_lr_mult, spared, lr_mult"
            raise ValueError(f"paramwise_cfg has unknown keys {sorted(options)}; known: {known}")
        multiples = {"layer_decay": self.layer_decay, "backbone_lr_mult": self.backbone_lr_mult}
        multiples.update({f"lr_mult[{part!r}]": factor for part, factor in self.lr_mult.items()})
        for key, factor in multiples.items():
            if factor is not None and not factor > 0:
                raise ValueError(f"{key}={factor} must be above 0")
        given = [key for key in ("stage_layers", "layer_blocks") if getattr(self, key) is not None]
        if len(given) > 1 or (given and self.layer_decay is None):
            raise ValueError(f"{' and '.join(given)} must come alone and with a layer_decay")
        if self.layer_blocks is not None and self.layer_blocks < 1:
            raise ValueError(f"layer_blocks={self.layer_blocks} must be at least 1")

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Optim wrapper for `model`, whose frozen parameters it leaves out.

        Raises:
            TypeError: There is no timm model inside `model`.
        """
        inner: Any = model.module if is_model_wrapper(model) else model
        wrapper = dict(self.wrapper)
        optimizer = dict(wrapper.pop("optimizer"))
        groups = self._groups(inner, optimizer.get("weight_decay", 0.0), optimizer["lr"])
        wrapper.setdefault("type", "OptimWrapper")
        return OPTIM_WRAPPERS.build(
            wrapper, default_args={"optimizer": OPTIMIZERS.build({**optimizer, "params": groups})}
        )

    def _groups(self, model: nn.Module, weight_decay: float, lr: float) -> list[dict[str, Any]]:
        network: Any = _timm_model(model)
        spared = set(network.no_weight_decay()) if hasattr(network, "no_weight_decay") else set()
        own = {id(p): name for name, p in network.named_parameters()}
        scales = self._scales(network)
        members = defaultdict(list)
        for name, p in model.named_parameters():
            if p.requires_grad:
                decayed = p.ndim > 1 and not name.endswith(".bias") and own.get(id(p)) not in spared
                decayed = decayed and not any(part in name for part in self.spared)
                scale = scales.get(id(p), 1.0)
                scale *= math.prod(factor for part, factor in self.lr_mult.items() if part in name)
                members[scale, weight_decay if decayed else 0.0].append(p)
        return [{"params": ps, "lr": lr * scale, "weight_decay": wd} for (scale, wd), ps in members.items()]

    def _scales(self, network: nn.Module) -> dict[int, float]:
        """Factor on the learning rate, by the parameter's id."""
        if self.layer_decay is None:
            return dict.fromkeys(map(id, network.parameters()), float(self.backbone_lr_mult))
        if self.stage_layers is not None or self.layer_blocks is not None:
            layers = self._layers(network)
            last = max(layers.values(), default=0) + 1
            factors = {
                name: self.layer_decay ** (last - layers.get(name, last)) for name, _ in network.named_parameters()
            }
            return {id(p): float(self.backbone_lr_mult * factors[name]) for name, p in network.named_parameters()}
        groups: Any = param_groups_layer_decay(network, layer_decay=self.layer_decay)
        return {id(p): float(self.backbone_lr_mult * group["lr_scale"]) for group in groups for p in group["params"]}

    def _layers(self, network: nn.Module) -> dict[str, int]:
        """Layer of the parameters of a pyramid's stem and stages, by name; the stem is layer 0."""
        if not isinstance(network, Pyramid):
            raise ValueError(f"stage_layers and layer_blocks need a pyramid; {type(network).__name__} is none")
        stages: Any = network.stages
        layers = _layers_of_blocks([len(stage.blocks) for stage in stages], self.stage_layers, self.layer_blocks)
        found = {}
        for name, _ in network.named_parameters():
            if match := re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", name):
                found[name] = layers[int(match[1])][int(match[2])]
            elif match := re.match(r"stages\.(\d+)\.down\.", name):
                found[name] = layers[int(match[1]) + 1][0]
            elif name.startswith(("stem.", "pos_embed.")):
                found[name] = 0
        return found


def _layers_of_blocks(
    depths: Sequence[int], stage_layers: Sequence[int] | None, layer_blocks: int | None
) -> list[list[int]]:
    """Layer of every block of every stage, counted from 1."""
    if layer_blocks is not None:
        firsts = [sum(depths[:i]) for i in range(len(depths))]
        return [[1 + (first + j) // layer_blocks for j in range(n)] for first, n in zip(firsts, depths, strict=True)]
    counts = tuple(stage_layers or ())
    if len(counts) != len(depths) or any(not 1 <= k <= n for k, n in zip(counts, depths, strict=True)):
        raise ValueError(f"stage_layers={counts} must divide stages of {tuple(depths)} blocks")
    starts = [1 + sum(counts[:i]) for i in range(len(depths))]
    return [[start + j * k // n for j in range(n)] for start, k, n in zip(starts, counts, depths, strict=True)]


def _timm_model(model: Any) -> nn.Module:
    """The network of timm inside a classifier, a detector or a segmentor."""
    backbone = next((m for m in model.modules() if isinstance(m, TimmBackbone)), None)
    if backbone is not None:
        return cast(nn.Module, backbone.model)
    if isinstance(getattr(model, "model", None), nn.Module):
        return model.model
    raise TypeError(f"TimmParamGroups: {type(model).__name__} has no TimmBackbone and is no TimmClassifier")
