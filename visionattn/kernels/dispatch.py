# SPDX-License-Identifier: Apache-2.0
"""Which backend runs a call, and why.

A backend offers an implementation of an op and a question, "can you run this?", that answers None for yes and a
reason for no. An explicit choice never falls back silently; "auto" takes the first backend that can.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

ENVIRONMENT_VARIABLE = "VISIONATTN_BACKEND"


class Problem(NamedTuple):
    """What decides about the backend of a call."""

    op: str
    device: str
    dtype: torch.dtype
    head_dim: int
    v_head_dim: int
    rank: int


class Backend(NamedTuple):
    """A way to run the ops: `usable` and `supports` return None, or why not; `ops` are the implementations."""

    name: str
    usable: Callable[[], str | None]
    supports: Callable[[Problem], str | None]
    ops: dict[str, Callable[..., Any]]


class _Explained(Exception):
    """Carries the answer of `explain` out of the call that it stops before any work."""


# Is given the problem, the implementation and the arguments of a call, and returns its result.
Watcher = Callable[[Problem, Callable[..., Any], tuple[Any, ...]], Any]

_backends: dict[str, Backend] = {}
_choice: str = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
_explaining = False
_watcher: Watcher | None = None


def register_backend(backend: Backend) -> None:
    """Add a backend; "auto" prefers those registered later."""
    _backends[backend.name] = backend


def register_op(backend: str, op: str, implementation: Callable[..., Any]) -> None:
    """Add an op to a backend that is registered already."""
    _backends[backend].ops[op] = implementation


def available_backends() -> dict[str, str | None]:
    """Every backend's name and None if it works on this machine, else why it does not."""
    return {name: backend.usable() for name, backend in _backends.items()}


def _check_name(name: str, source: str) -> None:
    allowed = ["auto", *_backends]
    if name not in allowed:
        near = difflib.get_close_matches(str(name), allowed, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{source}={name!r} is not a backend; use one of {', '.join(allowed)}.{hint}")


class use_backend:
    """Select the backend of every following call, or of a block.

    ``use_backend("torch")`` sets it; ``with use_backend("torch"):`` restores the earlier choice at the end.

    Args:
        name: "auto" or a name from `available_backends`.

    Raises:
        ValueError: The name is unknown.
    """

    def __init__(self, name: str) -> None:
        global _choice
        _check_name(name, "backend")
        self._earlier, _choice = _choice, name

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exception: object) -> None:
        global _choice
        _choice = self._earlier


def is_asked_for(name: str) -> bool:
    """Whether the backend was chosen by name, not left to "auto"."""
    return _choice == name


def _refusal(backend: Backend, problem: Problem) -> str | None:
    """Why a backend can't run a call; None if it can."""
    has_op = None if problem.op in backend.ops else f"it has no {problem.op}"
    return has_op or backend.usable() or backend.supports(problem)


def select(problem: Problem) -> tuple[Backend, str]:
    """The backend of a call and the reason.

    Raises:
        ValueError: The chosen backend is unknown.
        RuntimeError: The chosen backend can't run the call.
    """
    if _choice != "auto":
        _check_name(_choice, ENVIRONMENT_VARIABLE)
        backend = _backends[_choice]
        refusal = _refusal(backend, problem)
        if refusal:
            raise RuntimeError(f"backend {backend.name!r} was asked for, but {refusal}")
        return backend, "asked for"
    refusals: list[str] = []
    for backend in reversed(_backends.values()):
        refusal = _refusal(backend, problem)
        if refusal is None:
            return backend, "; ".join(refusals) or ("the first choice" if len(_backends) > 1 else "the only backend")
        refusals.append(f"not {backend.name}: {refusal}")
    raise RuntimeError(f"no backend runs {problem.op}: {'; '.join(refusals)}")


def run(problem: Problem, *args: Any) -> Any:
    """Run the op on the selected backend."""
    backend, reason = select(problem)
    if _explaining:
        raise _Explained(f"{backend.name} ({reason})")
    if _watcher is not None:
        return _watcher(problem, backend.ops[problem.op], args)
    return backend.ops[problem.op](*args)


@contextlib.contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Let every op of a block go through `watcher`, which sees its inputs and calls its implementation."""
    global _watcher
    earlier, _watcher = _watcher, watcher
    try:
        yield
    finally:
        _watcher = earlier


def explain(op: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """Which backend ``op(*args, **kwargs)`` would get, and why; nothing is computed.

    The call's arguments are checked as in a real call, and raise the same errors.

    Args:
        op: A function of `visionattn.kernels`, such as `neighborhood_attention`.
        *args: Its arguments.
        **kwargs: Its keyword arguments.

    Returns:
        A sentence such as ``"torch (the only backend)"``.
    """
    global _explaining
    _explaining = True
    try:
        op(*args, **kwargs)
    except _Explained as answer:
        return str(answer)
    finally:
        _explaining = False
    raise TypeError(f"op={op!r} is not an op of visionattn.kernels")
