# SPDX-License-Identifier: Apache-2.0
"""Parameter groups of classifiers, detectors and segmentors around a timm model."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, cast

from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from timm.optim import param_groups_layer_decay
from torch import nn

from visionattn.openmmlab.backbone import TimmBackbone


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TimmParamGroups:
    """Optimizer over timm's parameter groups: no weight decay on vectors and on what the model names.

    In a TimmClassifier the groups are those of its model. In detectors and segmentors on a TimmBackbone, layers are
    those of the backbone's model; necks, heads and norms that the backbone adds count as after its last layer.

    Args:
        optim_wrapper_cfg: mmengine's optim wrapper config, with its `optimizer`.
        paramwise_cfg: `dict(layer_decay=0.75)` multiplies the learning rate by so much from layer to layer towards the
            stem; None leaves it. `backbone_lr_mult=0.1` multiplies that of the whole model inside a detector or
            segmentor. `spared=("query_embed",)` exempts parameters from weight decay by parts of their names.

    Raises:
        ValueError: `paramwise_cfg` has an unknown key, or a factor is not above 0.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        self.wrapper = dict(optim_wrapper_cfg)
        options = dict(paramwise_cfg or {})
        self.layer_decay = options.pop("layer_decay", None)
        self.backbone_lr_mult = options.pop("backbone_lr_mult", 1.0)
        self.spared = tuple(options.pop("spared", ()))
        if options:
            known = "layer_decay, backbone_lr_mult, spared"
            raise ValueError(f"paramwise_cfg has unknown keys {sorted(options)}; known: {known}")
        for key, factor in (("layer_decay", self.layer_decay), ("backbone_lr_mult", self.backbone_lr_mult)):
            if factor is not None and not factor > 0:
                raise ValueError(f"{key}={factor} must be above 0")

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
                members[scales.get(id(p), 1.0), weight_decay if decayed else 0.0].append(p)
        return [{"params": ps, "lr": lr * scale, "weight_decay": wd} for (scale, wd), ps in members.items()]

    def _scales(self, network: nn.Module) -> dict[int, float]:
        """Factor on the learning rate, by the parameter's id."""
        if self.layer_decay is None:
            return dict.fromkeys(map(id, network.parameters()), float(self.backbone_lr_mult))
        groups: Any = param_groups_layer_decay(network, layer_decay=self.layer_decay)
        return {id(p): float(self.backbone_lr_mult * group["lr_scale"]) for group in groups for p in group["params"]}


def _timm_model(model: Any) -> nn.Module:
    """The network of timm inside a classifier, a detector or a segmentor."""
    backbone = next((m for m in model.modules() if isinstance(m, TimmBackbone)), None)
    if backbone is not None:
        return cast(nn.Module, backbone.model)
    if isinstance(getattr(model, "model", None), nn.Module):
        return model.model
    raise TypeError(f"TimmParamGroups: {type(model).__name__} has no TimmBackbone and is no TimmClassifier")
