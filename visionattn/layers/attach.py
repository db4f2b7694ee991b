# SPDX-License-Identifier: Apache-2.0
"""Gates put into networks that are built already: timm's CNNs, or any other."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from .gates import GATES, create_gate
from .names import pick, unknown

PLACES = {
    "after_bottleneck": "end of each block's branch, before the addition",
    "after_block": "output of each block",
    "after_stage": "output of the last block of each stage",
    "in_place_of_se": "slot of timm's blocks for squeeze-and-excitation, filled or not",
}


class GatedPath(DropPath):
    """A gate at the end of a residual branch, and the drop-path that was there.

    Args:
        gate: Gate of the branch.
        drop_path: What timm's block had in its place.
    """

    def __init__(self, gate: nn.Module, drop_path: nn.Module | None) -> None:
        kept = (drop_path.drop_prob, drop_path.scale_by_keep) if isinstance(drop_path, DropPath) else ()
        super().__init__(*kept)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        """Branch's map `(B, C, H, W)` to one of the same shape."""
        return super().forward(self.gate(x))


@dataclass(frozen=True)
class _Spot:
    """Where a gate can go: the output of a module, or a slot of it, an attribute that holds a module or nothing."""

    name: str
    module: nn.Module
    slot: str | None = None

    def put(self, gate: nn.Module) -> None:
        if self.slot is None:
            self.module.add_module("gate", gate)
            if not isinstance(self.module, nn.Sequential):  # a sequence runs its members, this one too
                self.module.register_forward_hook(_through_gate)
        elif self.slot == "drop_path":
            self.module.drop_path = GatedPath(gate, self.module.drop_path)
        else:
            setattr(self.module, self.slot, gate)


def _through_gate(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return module.gate(output)


def attach(model: nn.Module, gate: str, where: str | Sequence[str] = "after_bottleneck", **kwargs: Any) -> nn.Module:
    """Puts new gates into a network.

        attach(timm.create_model("resnet50", pretrained=True), "triplet", kernel_size=3)
        attach(timm.create_model("convnext_atto"), "cbam", where="after_stage")
        attach(timm.create_model("mobilenetv2_100"), "ulsam", where=["blocks.4.2", "blocks.5.*"])

    Blocks are the modules with timm's `drop_path`, so nearly every CNN of timm will do; other networks take names of
    modules. Channels are read off a trial run on the meta device. The network's own parameters keep their names.

    Args:
        model: Network of maps `(B, C, H, W)`; it is changed in place.
        gate: Name of the gates, one of `visionattn.layers.GATES`.
        where: Place of the gates, one of `PLACES`; or names of modules to put them after, in which `*` and `?` match
            within one part.
        **kwargs: Of the gates.

    Returns:
        `model`.

    Raises:
        TypeError: If `model` is no module, or `kwargs` do not fit the gate.
        ValueError: If there is no such gate or place, the model has no such place, or there is a gate already. The
            model then stays as it was.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}, not a torch.nn.Module")
    pick("gate", gate, GATES)
    if any(getattr(module, "output_fmt", None) == "NHWC" for module in model.modules()):
        raise ValueError(f"{type(model).__name__} is a network of maps (B, H, W, C); gates need maps (B, C, H, W)")
    choices = _choices(model, where)
    shapes = _trial(model, [spot for spots in choices for spot in spots])
    chosen = [next((spot for spot in spots if spot in shapes), None) for spots in choices]
    spots = [spot for spot in chosen if spot is not None]
    if not spots:
        raise ValueError(f"where={where!r}: no such place of {type(model).__name__} takes part in its forward pass")
    # Every gate exists before the first is put in: an error leaves the model alone.
    gates = [create_gate(gate, _channels(spot, shapes[spot]), **kwargs) for spot in spots]
    like = next(model.parameters())
    for spot, new in zip(spots, gates, strict=True):
        spot.put(new.to(like.device, like.dtype).train(model.training))
    return model


def _choices(model: nn.Module, where: str | Sequence[str]) -> list[list[_Spot]]:
    """The spots that `where` means; each is a list of which the first that takes part is to be used."""
    blocks = {name: m for name, m in model.named_modules() if _is_slot(m, "drop_path")}
    if where == "in_place_of_se":
        choices = [[_Spot(name, m, "se")] for name, m in model.named_modules() if _is_slot(m, "se")]
    elif where == "after_bottleneck":
        # Without a shortcut there is no drop-path to run, and the branch ends where the block does.
        choices = [[_Spot(name, m, "drop_path"), _Spot(name, m)] for name, m in blocks.items()]
    elif where == "after_block":
        choices = [[_Spot(name, m)] for name, m in blocks.items()]
    elif where == "after_stage":
        choices = [[_end_of(model, name, blocks)] for name in dict.fromkeys(n.rpartition(".")[0] for n in blocks)]
    else:
        return [[_end_of(model, name, blocks)] for name in _matching(model, where)]
    if not choices:
        raise ValueError(
            f"where={where!r} ({PLACES[str(where)]}): {type(model).__name__} has none; give names of modules, those at "
            f"its top are {', '.join(name for name, _ in model.named_children())}"
        )
    return choices


def _is_slot(module: nn.Module, name: str) -> bool:
    kinds = (DropPath, nn.Identity) if name == "drop_path" else nn.Module
    return hasattr(module, name) and (getattr(module, name) is None or isinstance(getattr(module, name), kinds))


def _end_of(model: nn.Module, name: str, blocks: Mapping[str, nn.Module]) -> _Spot:
    """Output of a module; that of its last block where it holds blocks, as some stages run whatever they hold."""
    module = model.get_submodule(name)
    if not isinstance(module, nn.Sequential):
        inside = [block for block in blocks if block.rpartition(".")[0] == name]
        name = inside[-1] if inside else name
    return _Spot(name, model.get_submodule(name))


def _matching(model: nn.Module, where: str | Sequence[str]) -> list[str]:
    """Names of the modules that the patterns match, in the order of the patterns."""
    known = [name for name, _ in model.named_modules() if name]
    found: dict[str, None] = {}
    for pattern in [where] if isinstance(where, str) else where:
        hits = [name for name in known if _matches(name, pattern)]
        if not hits:
            raise ValueError(f"{unknown('place or module', pattern, [*PLACES, *known])}; places: {', '.join(PLACES)}")
        found |= dict.fromkeys(hits)
    if not found:
        raise ValueError(f"where={where!r} must be one of {', '.join(PLACES)}, or names of modules")
    return list(found)


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


class _WithoutBatchNorms(TorchFunctionMode):
    """Leaves batch norms out: they keep shapes, and on the meta device they take nearly all of the time."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is F.batch_norm else func(*args, **(kwargs or {}))


def _trial(model: nn.Module, spots: Iterable[_Spot]) -> dict[_Spot, list[Any]]:
    """Shapes that pass through the spots in one forward pass, which costs neither memory nor arithmetic."""
    shapes: dict[_Spot, list[Any]] = defaultdict(list)
    empty: list[_Spot] = []
    hooks = []
    try:
        for spot in spots:
            module = spot.module
            if spot.slot is not None:
                if getattr(module, spot.slot) is None:
                    empty.append(spot)
                    setattr(module, spot.slot, nn.Identity())
                module = getattr(module, spot.slot)

            def note(module: nn.Module, args: Any, output: Any, spot: _Spot = spot) -> None:
                shapes[spot].append(getattr(output, "shape", type(output).__name__))

            hooks.append(module.register_forward_hook(note))
        entries = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        state = {name: torch.empty_like(entry, device="meta") for name, entry in entries.items()}
        with torch.no_grad(), _WithoutBatchNorms():
            torch.func.functional_call(model, state, (_images(model),))
    finally:
        for hook in hooks:
            hook.remove()
        for spot in empty:
            setattr(spot.module, str(spot.slot), None)
    return dict(shapes)


def _images(model: nn.Module) -> Tensor:
    """Two images without values, of the size that the model was made for."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        raise ValueError(f"{type(model).__name__} has no convolution: gates are for networks of maps (B, C, H, W)")
    cfg = getattr(model, "pretrained_cfg", None) or {}
    size = tuple(cfg.get("input_size", (3, 224, 224)))[1:]
    return torch.empty(2, first.in_channels, *size, device="meta", dtype=first.weight.dtype)


def _channels(spot: _Spot, shapes: Sequence[Any]) -> int:
    """Channels at a spot, once it is sure that a gate can work there."""
    if len(shapes) > 1:
        raise ValueError(f"module {spot.name!r} runs {len(shapes)} times in a forward pass; it can take no gate")
    (shape,) = shapes
    if len(shape) != 4 or isinstance(shape, str):
        raise ValueError(f"module {spot.name!r} returns {shape}; gates need maps (B, C, H, W)")
    if spot.slot is None:
        if isinstance(spot.module, _BatchNorm):
            # Conversion to synchronized norms makes a new module, without the hook.
            raise ValueError(f"module {spot.name!r} is a batch norm; name the block or the activation that follows")
        if hasattr(spot.module, "gate"):
            raise ValueError(f"module {spot.name!r} has a gate already")
    elif isinstance(getattr(spot.module, spot.slot), GatedPath):
        raise ValueError(f"the branch of block {spot.name!r} has a gate already")
    return shape[1]
