# SPDX-License-Identifier: Apache-2.0
"""Mixers of linear cost agree with what their references computed: outputs and gradients of inputs and parameters."""

from collections.abc import Callable
from typing import Any

import pytest
import records
import torch
from torch import Tensor, nn

from visionattn.layers import AgentAttention, FocusedLinearAttention, InlineAttention
from visionattn.layers.inline import convolve_samples
from visionattn.layers.linear_mixer import join_class, split_class
from visionattn.models import agent, flatten
from visionattn.models._hosted import key_map

Inputs = dict[str, Tensor]
Arguments = dict[str, Any]
# What a gradient that is zero but for rounding may be.
ROUNDING = 1e-11


def call_with(layer: nn.Module, tensors: Inputs, run: Callable[[nn.Module], Tensor]) -> Tensor:
    """`run(layer)` with tensors in place of the layer's parameters, so that gradients reach them."""

    class Shell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self) -> Tensor:
            return run(self.layer)

    return torch.func.functional_call(Shell(), {f"layer.{name}": t for name, t in tensors.items()}, ())


def renamed(x: Inputs, keys: Any, layer: nn.Module) -> Inputs:
    """Parameters of a record by our names, in our layout."""
    own, targets = {}, dict(layer.named_parameters())
    for name, tensor in x.items():
        dotted = name.replace("dwc_", "dwc.")
        ours, transforms = key_map("", "swin", keys).rename(f".attn.{dotted}")
        ours = ours.removeprefix(".attn.")
        for transform in transforms:
            tensor = transform(tensor, targets[ours])
        own[ours] = tensor
    return own


def map_of(x: Tensor, grid: list[int], heads: int) -> Tensor:
    """Tokens `(B, N, C)` as a map `(B, H, W, heads, D)`."""
    return x.unflatten(1, grid).unflatten(-1, (heads, -1))


def agents(x: Inputs, a: Arguments) -> Tensor:
    reduction = a["grid"][0] // a["kv_grid"][0]
    layer = AgentAttention(
        x["q"].shape[2], a["heads"], a["agent_num"], tuple(a.get("trained_grid", a["grid"])), tuple(a["agent_shape"]),
        reduction=reduction if reduction > 1 else None, class_token=a["cls"],
    ).to(x["q"].dtype)  # fmt: skip
    tables = renamed({name: t for name, t in x.items() if name not in "qkv"}, agent.KEYS, layer)
    if a["cls"]:
        q, k, v = (x[name].unflatten(-1, (a["heads"], -1)) for name in "qkv")
        run = lambda mixer: mixer.attend_tokens(q, k, v, tuple(a["grid"])).flatten(-2)  # noqa: E731
    else:
        q, k, v = (map_of(x[n], a[g], a["heads"]) for n, g in (("q", "grid"), ("k", "kv_grid"), ("v", "kv_grid")))
        run = lambda mixer: mixer.attend(0, q, k, v).flatten(1, 2).flatten(-2)  # noqa: E731
    return call_with(layer, tables, run)


def focused(x: Inputs, a: Arguments) -> Tensor:
    reduction = a["grid"][0] // a["kv_grid"][0]
    layer = FocusedLinearAttention(
        x["q"].shape[2], a["heads"], a["focusing_factor"], a["kernel_size"], tuple(a["grid"]),
        reduction=reduction if reduction > 1 else None,
    ).to(x["q"].dtype)  # fmt: skip
    q, k, v = (map_of(x[n], a[g], a["heads"]) for n, g in (("q", "grid"), ("k", "kv_grid"), ("v", "kv_grid")))
    tables = renamed({name: t for name, t in x.items() if name not in "qkv"}, flatten.KEYS, layer)
    return call_with(layer, tables, lambda mixer: mixer.attend(q, k, v).flatten(1, 2).flatten(-2))


def inline(x: Inputs, a: Arguments) -> Tensor:
    layer = InlineAttention(x["q"].shape[2], a["heads"], class_token=a["cls"]).to(x["q"].dtype)
    heads, grid = a["heads"], tuple(a["grid"])
    q, k, v = (x[name].unflatten(-1, (heads, -1)) for name in "qkv")

    def run(mixer: InlineAttention) -> Tensor:
        out = mixer.attend_tokens(q, k, v)
        values = split_class(v, grid)[1] if a["cls"] else v.unflatten(1, grid)
        if a["predict"]:
            local = mixer.local(values, x["x"])
        else:
            local = convolve_samples(values.flatten(3), x["res_weight"].unflatten(1, (-1, 9))).unflatten(3, v.shape[2:])
        if not a["cls"]:
            return (out + local.flatten(1, 2)).flatten(-2)
        token, pixels = split_class(out, grid)
        return join_class(token, pixels + local).flatten(-2)

    named = {name.replace("residual_", "taps.").replace("_weight", ".weight").replace("_bias", ".bias"): t
             for name, t in x.items() if name.startswith("residual")}  # fmt: skip
    return call_with(layer, named, run)


OPS: dict[str, Callable[[Inputs, Arguments], Tensor]] = {
    "agent_attention": agents,
    "focused_linear_attention": focused,
    "inline_attention": inline,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each case of each record."""
    cases = []
    for path in records.paths(metafunc.config):
        op = path.name.removesuffix(".json.gz")
        if path.parent.name == "ops" and op in OPS:
            cases += [pytest.param(op, case, id=f"{op}-{case['name']}") for case in records.load(path)["cases"]]
    metafunc.parametrize(("op", "case"), cases)


def compare(op: str, case: dict[str, Any], dtype: torch.dtype) -> float:
    """Largest error of output and gradients."""
    x = {
        name: records.draw(i["shape"], i["seed_name"], i["scale"], dtype).requires_grad_()
        for name, i in case["inputs"].items()
    }
    out = OPS[op](x, case["args"])
    errors = [records.error(out, case["outputs"]["out"])]
    (out * records.cotangent(out.shape, dtype)).sum().backward()
    for name, digest in case["grads"].items():
        grad = x[name].grad
        if digest is None:
            assert dtype != torch.float64 or grad.abs().max() < ROUNDING, name
        else:
            errors.append(records.error(grad, digest))
    return max(errors)


def test_agrees_in_float64(op: str, case: dict[str, Any]) -> None:
    assert compare(op, case, torch.float64) < 1e-9


def test_agrees_in_float32(op: str, case: dict[str, Any]) -> None:
    assert compare(op, case, torch.float32) < 1e-4
