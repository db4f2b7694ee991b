# SPDX-License-Identifier: Apache-2.0
"""Which attention a model computes: every call in one forward pass, and the layer around it.

A call is an op of ours, a mixer's `attend(q, k, v)`, PyTorch's `scaled_dot_product_attention`, or a product of what a
softmax returned with values. All are linear in the values, so that autograd reads their weights without knowing them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from visionattn.kernels import dispatch
from visionattn.kernels.local_torch import Inputs
from visionattn.layers import MIXERS

SOFTMAX = {torch.softmax, F.softmax, Tensor.softmax}
# What keeps the weights weights.
KEEPING = {F.dropout, torch.dropout, Tensor.to, Tensor.type_as, Tensor.contiguous, Tensor.float, Tensor.half}
PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm}
# Where ops of ours have their values; all tensors of an op have their heads on the last axis but one.
VALUES = {
    "aggregated_attention": (3, 5),
    "agent_attention": (2,),
    "clustered_attention": (2,),
    "deformable_attention": (2,),
    "flow_attention": (2,),
    "focused_linear_attention": (2,),
    "indexed_attention": (2,),
    "inline_attention": (2,),
    "relative_attention": (2,),
    "routed_attention": (2,),
    "selected_attention": (2,),
}


@dataclass
class Call:
    """One attention: what it read as values, what it returned, and how it is computed again from other values.

    Args:
        op: Name of the function.
        values: Tensors that the output is linear in; the last axis is that of channels.
        output: What it returned.
        compute: From values, the output; queries and keys are those of the forward pass.
        head_axis: Axis of the heads in values and output, negative; None where there is one head.
        points: Where keys were read, `(groups, N, 2)`, (y, x) from -1 to 1, of deformable attention.
    """

    op: str
    values: tuple[Tensor, ...]
    output: Tensor
    compute: Callable[..., Tensor]
    head_axis: int | None
    points: Tensor | None = None


@dataclass
class Site:
    """A layer that attends, or a mixer that has no attention that could be seen.

    Args:
        name: Of the module in the model.
        kind: Of the module's class.
        input: What it read.
        output: What it returned.
        calls: Attention inside it.
    """

    name: str
    kind: str
    input: Tensor
    output: Tensor
    calls: list[Call] = field(default_factory=list)


class Recorder(TorchFunctionMode):
    """Sees a forward pass: modules as they run, and the attention inside."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {module: name for name, module in model.named_modules()}
        self.running: list[Site] = []
        self.calls: list[tuple[Call, tuple[Site, ...]]] = []
        self.mixers: list[Site] = []
        self.depth = 0
        self.weights: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Notes PyTorch's attention, and products of softmax weights with values."""
        kwargs = kwargs or {}
        if self.depth:
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            q, k, v = (list(args) + [kwargs.pop(name) for name in ("query", "key", "value")[len(args) :]])[:3]
            more, kwargs = list(args[3:]), {name: _detached(value) for name, value in kwargs.items()}
            with self._inside():
                output = func(q, k, v, *more, **kwargs)
            fixed = q.detach(), k.detach()
            compute = lambda v: F.scaled_dot_product_attention(*fixed, v, *more, **kwargs)  # noqa: E731
            return self._note("scaled_dot_product_attention", (v,), output, compute, -3 if v.ndim > 3 else None)
        if func in PRODUCTS and len(args) == 2 and id(args[0]) in self.weights:
            with self._inside():
                output = func(*args)
            heads = -3 if args[1].ndim > 3 else None
            return self._note("softmax", (args[1],), output, partial(torch.matmul, args[0].detach()), heads)
        output = func(*args, **kwargs)
        if func in SOFTMAX or (func in KEEPING and id(args[0]) in self.weights):
            self.weights[id(output)] = output  # kept, so that no other tensor gets its id
        return output

    def see_op(self, problem: dispatch.Problem, implementation: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Runs an op of ours, and notes it if it attends; for `dispatch.watched_by`."""
        with self._inside():
            result = implementation(*args)
        if self.depth:
            return result
        if problem.op == "local_attention":
            inputs: Inputs = args[0]._replace(rel_tables=())
            fixed = _detached(args[0])
            values = tuple(value for value in (inputs.v, inputs.extra_v) if value is not None)

            def compute(v: Tensor, extra_v: Tensor | None = None) -> Tensor:
                return implementation(fixed._replace(v=v, extra_v=extra_v), args[1])[0]

            return (self._note(problem.op, values, result[0], compute, -2), *result[1:])
        if problem.op not in VALUES:
            return result
        places = VALUES[problem.op]
        others = [_detached(arg) for arg in args]

        def compute_op(*values: Tensor) -> Tensor:
            given = dict(zip(places, values, strict=True))
            return implementation(*(given.get(i, other) for i, other in enumerate(others)))

        points = args[3].detach()[0] if problem.op == "deformable_attention" else None
        values = tuple(args[i] for i in places)
        return self._note(problem.op, values, result, compute_op, -2, points)

    def attend(self, mixer: nn.Module, original: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Runs `attend` of one of our mixers, and notes it."""
        if self.depth or v.ndim != 4:  # of maps (B, H, W, heads, D): the op inside is seen
            return original(q, k, v)
        with self._inside():
            output = original(q, k, v)
        fixed = q.detach(), k.detach()
        return self._note(type(mixer).__name__, (v,), output, partial(original, *fixed), -3)

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module begins."""
        tensor = next((arg for arg in args if isinstance(arg, Tensor)), None)
        empty = torch.empty(0)
        given = empty if tensor is None else tensor
        self.running.append(Site(self.names[module], type(module).__name__, given, empty))

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A module ends."""
        site = self.running.pop()
        site.output = output if isinstance(output, Tensor) else torch.empty(0)
        if type(module) in MIXERS.values():
            self.mixers.append(site)

    def _note(
        self,
        op: str,
        values: tuple[Tensor, ...],
        output: Tensor,
        compute: Callable[..., Tensor],
        head_axis: int | None,
        points: Tensor | None = None,
    ) -> Tensor:
        self.calls.append((Call(op, values, output, compute, head_axis, points), tuple(self.running[::-1])))
        return output

    @contextmanager
    def _inside(self) -> Iterator[None]:
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1


def record(model: nn.Module, image: Tensor, run: Callable[[Tensor], Any]) -> tuple[Any, list[Site]]:
    """What `run(image)` returns, and the model's layers of attention, in the order in which they end.

    The layer of a call is the innermost module whose input and output are of one map or sequence of one image, such as
    a mixer, or the block around attention to windows.

    Args:
        model: In evaluation mode.
        image: `(1, C, H, W)`, which requires gradients.
        run: Runs the model, or a part of it.
    """
    recorder = Recorder(model)
    with ExitStack() as stack:
        for module in recorder.names:
            for handle in (
                module.register_forward_pre_hook(recorder.enter, with_kwargs=True),
                module.register_forward_hook(recorder.leave),
            ):
                stack.callback(handle.remove)
            attend = getattr(module, "attend", None)
            if attend is not None and list(inspect.signature(attend).parameters) == ["q", "k", "v"]:
                module.attend = partial(recorder.attend, module, attend)
                stack.callback(delattr, module, "attend")
        stack.enter_context(dispatch.watched_by(recorder.see_op))
        stack.enter_context(recorder)
        result = run(image)
    sites: dict[str, Site] = {}
    for call, around in recorder.calls:
        site = next((site for site in around if _is_layer(site)), None)
        if site is not None:
            sites.setdefault(site.name, site).calls.append(call)
    for mixer in recorder.mixers:
        seen = any(name.startswith(mixer.name) or mixer.name.startswith(f"{name}.") for name in sites)
        if not seen and _is_layer(mixer) and mixer.kind != "Identity":
            sites[mixer.name] = mixer
    order = {name: i for i, name in enumerate(recorder.names.values())}
    return result, sorted(sites.values(), key=lambda site: order[site.name])


def _is_layer(site: Site) -> bool:
    before, after = site.input, site.output
    if before.ndim not in (3, 4) or before.ndim != after.ndim or before.shape[0] != 1 or not after.requires_grad:
        return False
    differing = [axis for axis in range(before.ndim) if before.shape[axis] != after.shape[axis]]
    if not differing or differing == [before.ndim - 1] or (before.ndim == 4 and differing == [1]):
        return True  # but for channels
    # Attention with a stride, of maps (1, C, H, W).
    return before.ndim == 4 and all(-(-before.shape[axis] // 2) == after.shape[axis] for axis in (2, 3))


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, Inputs):
        return Inputs.unpack([_detached(part) for part in value.flat()])
    return value
