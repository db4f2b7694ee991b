# SPDX-License-Identifier: Apache-2.0
"""Models of timm, torchvision, mmdet, mmseg and Hugging Face with their local attention computed by our ops."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from . import _huggingface, _openmmlab, _timm, _torchvision
from ._adapter import Accelerated, Adapter, full_name, known_base, take_off

__all__ = ["Entry", "Report", "accelerate", "restore"]

_ADAPTERS: dict[str, list[Adapter]] = defaultdict(list)
for _library in (_timm, _torchvision, _openmmlab, _huggingface):
    for _adapter in _library.ADAPTERS:
        _ADAPTERS[_adapter.library_class].append(_adapter)


@dataclass(frozen=True)
class Entry:
    """One module that was recognised.

    Args:
        name: Its name in the model, as `get_submodule` takes it.
        library_class: Full name of its class.
        op: Op of `visionattn.kernels` that computes it now; None where it was left.
        reason: Why it was left; None where it was replaced.
    """

    name: str
    library_class: str
    op: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Report:
    """What `accelerate` did to a model; `print` it.

    Args:
        replaced: Modules that our ops compute now.
        left: Modules of the same kinds that were left as they are, with the reason.
        model: The model.
    """

    replaced: tuple[Entry, ...]
    left: tuple[Entry, ...]
    model: nn.Module = field(repr=False, compare=False)

    def undo(self) -> None:
        """Give the replaced modules their libraries' forwards back."""
        for entry in self.replaced:
            take_off(self.model.get_submodule(entry.name))

    def __str__(self) -> str:
        if not self.replaced and not self.left:
            return "nothing to accelerate: no window, halo or neighborhood attention that visionattn knows"
        lines = _summary("accelerated", self.replaced, [f"{e.library_class} by {e.op}" for e in self.replaced])
        return "\n".join(lines + _summary("left", self.left, [f"{e.library_class}: {e.reason}" for e in self.left]))


def accelerate(model: nn.Module) -> Report:
    """Let our ops compute the window, halo and neighborhood attention of another library's model, in place.

    Known are the Swin Transformers (V1, V2) of timm, torchvision, mmdet, mmseg and Hugging Face, timm's halo
    attention, and Hugging Face's NAT and DiNAT. Rolling, partitioning, padding and masking maps become index
    arithmetic inside the ops. Outputs and gradients stay equal up to rounding; parameters, buffers, names in the state
    dict and hooks on the modules stay the same objects. Only dropout other than of attention weights draws other
    random numbers, as it no longer sees padding. A model with our modules can be copied, pickled, compiled and
    checkpointed; `report.undo()` or `restore` gives the libraries' forwards back.

    Modules are recognised by the names of their classes; no library is imported. What asks for attention weights
    (dropout of them in training, `output_attentions`) goes the library's way, call by call.

    Args:
        model: Any model; it may be in use already, by an optimizer or a wrapper for parallel training.

    Returns:
        What was replaced, and what was left and why.

    Raises:
        TypeError: `model` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}; it must be a torch.nn.Module")
    found = [(name, module, adapter) for name, module in model.named_modules() if (adapter := _adapter_of(module))]
    replaced, left = [], []
    for name, module, adapter in found:
        kind = full_name(type(module))
        reason = "accelerated before" if isinstance(module, Accelerated) else adapter.obstacle(module)
        if reason is None:
            adapter.put_on(module)
            replaced.append(Entry(name, kind, op=adapter.op))
        else:
            left.append(Entry(name, kind, reason=reason))
    return Report(tuple(replaced), tuple(left), model)


def restore(model: nn.Module) -> None:
    """Give every module of a model that `accelerate` changed its library's forward back."""
    for module in model.modules():
        take_off(module)


def _adapter_of(module: nn.Module) -> Adapter | None:
    """Adapter of a module's class; where versions of a library differ, the one whose parts are there."""
    base = known_base(module, _ADAPTERS)
    if base is None:
        return None
    adapters = _ADAPTERS[full_name(base)]
    return next((adapter for adapter in adapters if adapter.missing(module) is None), adapters[0])


def _summary(verb: str, entries: Sequence[Entry], kinds: Sequence[str]) -> list[str]:
    """One line in all and one for each kind, with the first and last module of it."""
    if not entries:
        return []
    lines = [f"{verb} {len(entries)} module{'s' if len(entries) > 1 else ''}"]
    for kind, count in Counter(kinds).items():
        names = [entry.name or "the model itself" for entry, own in zip(entries, kinds, strict=True) if own == kind]
        where = names[0] if count == 1 else f"{names[0]} … {names[-1]}"
        lines.append(f"  {count} x {kind} ({where})")
    return lines
