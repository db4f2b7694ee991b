# SPDX-License-Identifier: Apache-2.0
"""The selective scan agrees with its reference: outputs, last states and gradients; the tree that tracers get too."""

from collections.abc import Callable
from typing import Any

import pytest
import records
import torch
from torch import Tensor

from visionattn.kernels import scan_torch, selective_scan

TRANSFORMS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "neg_exp": lambda x: -x.exp(),
    "abs": torch.abs,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each case of the record."""
    paths = [p for p in records.paths(metafunc.config) if p.parent.name == "ops" and "selective_scan" in p.name]
    cases = [case for path in paths for case in records.load(path)["cases"]]
    metafunc.parametrize("case", [pytest.param(case, id=case["name"]) for case in cases])


def compare(case: dict[str, Any], dtype: torch.dtype) -> float:
    """Largest error of outputs and gradients."""
    x = {
        name: TRANSFORMS[i.get("transform")](records.draw(i["shape"], i["seed_name"], i["scale"])).to(dtype)
        for name, i in case["inputs"].items()
    }
    x = {name: tensor.requires_grad_() for name, tensor in x.items()}
    # The reference has the sequence last.
    turned = {name: tensor.transpose(1, 2) if tensor.ndim == 3 else tensor for name, tensor in x.items()}
    out, state = selective_scan(**turned, **case["args"], return_last_state=True)
    out = out.transpose(1, 2)
    errors = [records.error(out, case["outputs"]["out"]), records.error(state, case["outputs"]["last_state"])]
    (out * records.cotangent(out.shape, dtype)).sum().backward()
    grads = {name: torch.zeros_like(x[name]) if x[name].grad is None else x[name].grad for name in case["grads"]}
    return max(*errors, *(records.error(grads[name], digest) for name, digest in case["grads"].items()))


@pytest.mark.parametrize("chunk", [1 << 18, 1], ids=["one chunk", "a chunk a channel"])
def test_agrees_in_float64(case: dict[str, Any], chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scan_torch.CHUNK, "cpu", chunk)
    assert compare(case, torch.float64) < 1e-9


def test_agrees_in_float32(case: dict[str, Any]) -> None:
    assert compare(case, torch.float32) < 1e-4


def test_tracers_tree_agrees(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_torch._Chunked, "apply", scan_torch.all_at_once)
    assert compare(case, torch.float64) < 1e-9
