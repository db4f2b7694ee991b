# SPDX-License-Identifier: Apache-2.0
"""How a module of another library gets a forward of ours: it changes its class, and nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, ClassVar

from torch import nn

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")

_CLASSES: dict[tuple[type, type], type] = {}


class Accelerated:
    """Goes before a library's class among the bases of a class that `accelerated_class` makes.

    Derived classes hold the methods that take the place of the library's. Parameters, buffers, hooks and attributes
    stay in the module and are read at each call, so that what the library changes later (an input size, a window)
    counts. Names are long as the module's own attributes must not be hidden.
    """

    _accelerated_by: ClassVar[type[Accelerated]]
    _library_class: ClassVar[Any]
    _library_arguments: ClassVar[tuple[str, ...]]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class has no place of its own from which copying and unpickling could fetch it.
        reduced: Any = super().__reduce_ex__(protocol)
        return (_new, (self._accelerated_by, self._library_class), *reduced[2:])


@dataclass(frozen=True)
class Adapter:
    """What is known of one class of a library.

    Args:
        library_class: Its full name.
        accelerated: Holds the methods that take the place of its own.
        dropout: Rate of a module's dropout between softmax and values, which our ops do not have.
        parts: Attributes that those methods read; without one of them the library is of another version.
        methods: Names of those methods.
        inner: Submodules that are not called as a whole any more, and the full names of their classes.
        op: The op of `visionattn.kernels` that does the work.
    """

    library_class: str
    accelerated: type[Accelerated]
    dropout: Callable[[Any], float]
    parts: tuple[str, ...]
    methods: tuple[str, ...] = ("forward",)
    inner: Mapping[str, str] = field(default_factory=dict)
    op: str = "window_attention"

    def missing(self, module: nn.Module) -> str | None:
        """The first of `parts` that a module lacks."""
        return next((part for part in self.parts if _get(module, part) is None), None)

    def obstacle(self, module: nn.Module) -> str | None:
        """Why a module must be left as it is; None if it need not."""
        if missing := self.missing(module):
            return f"it has no {missing}, in this version of {self.library_class.partition('.')[0]}"
        known = known_base(module, (self.library_class,))
        for method in self.methods:
            if reason := _overridden(module, known, method):
                return reason
        for path, expected in self.inner.items():
            if reason := _changed(module.get_submodule(path), expected):
                return f"its {path} {reason}"
        rate = self.dropout(module) if module.training else 0.0
        return f"attention dropout {rate:g} in training" if rate > 0 else None

    def put_on(self, module: nn.Module) -> None:
        """Give a module the class that computes with our ops."""
        module.__class__ = accelerated_class(self.accelerated, type(module))


def accelerated_class(accelerated: type[Accelerated], library_class: type[nn.Module]) -> type[nn.Module]:
    """The library's class with our methods over its own; always the same one for the same two classes."""
    if (accelerated, library_class) in _CLASSES:
        return _CLASSES[accelerated, library_class]
    members = {
        "__module__": library_class.__module__,
        "__doc__": library_class.__doc__,
        "_accelerated_by": accelerated,
        "_library_class": library_class,
        "_library_arguments": tuple(inspect.signature(library_class.forward).parameters)[1:],
    }
    made = type(f"Accelerated{library_class.__name__}", (accelerated, library_class), members)
    return _CLASSES.setdefault((accelerated, library_class), made)


def _new(accelerated: type[Accelerated], library_class: type[nn.Module]) -> nn.Module:
    made = accelerated_class(accelerated, library_class)
    return made.__new__(made)


def take_off(module: nn.Module) -> None:
    """Give a module its library's class back, if it has one of ours."""
    if isinstance(module, Accelerated):
        module.__class__ = module._library_class


def arguments(module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a call by the names that the library's forward gives them, whatever their order there."""
    return {**dict(zip(module._library_arguments, args, strict=False)), **kwargs}


def _get(module: Any, path: str) -> Any:
    return reduce(lambda value, name: getattr(value, name, None), path.split("."), module)


def full_name(cls: type) -> str:
    """Name of a class as adapters know it."""
    return f"{cls.__module__}.{cls.__qualname__}"


def known_base(module: nn.Module, names: Collection[str]) -> type[nn.Module] | None:
    """The nearest class of a module whose full name is among `names`; imports nothing."""
    return next((base for base in type(module).__mro__ if full_name(base) in names), None)


def _overridden(module: nn.Module, known: Any, method: str) -> str | None:
    if method in vars(module):
        return f"its {method} was replaced"
    if getattr(type(module), method) is not getattr(known, method):
        return f"{type(module).__qualname__} has a {method} of its own"
    return None


def _changed(module: nn.Module, expected: str) -> str | None:
    """Why a submodule may not be passed over; None if it is what the library makes."""
    known = known_base(module, (expected,))
    if known is None:
        return f"is {full_name(type(module))}, not {expected}"
    if _overridden(module, known, "forward"):
        return "has a forward of its own"
    return "has hooks, which would not be called" if any(getattr(module, hooks) for hooks in HOOKS) else None
