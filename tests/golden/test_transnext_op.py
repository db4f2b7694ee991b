# SPDX-License-Identifier: Apache-2.0
"""Aggregated attention agrees with its reference: output, softmax and all gradients, in one chunk and row by row."""

from typing import Any

import pytest
import records
import torch
from torch import Tensor

from visionattn.kernels import aggregated_attention, aggregated_torch


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each case of the record."""
    paths = [p for p in records.paths(metafunc.config) if p.name == "aggregated_attention.json.gz"]
    cases = [pytest.param(case, id=case["name"]) for p in paths for case in records.load(p)["cases"]]
    metafunc.parametrize("case", cases)


def drawn(entry: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """Leaf tensor of an input; some are brought to unit length."""
    x = records.draw(entry["shape"], entry["seed_name"], entry["scale"])
    if entry.get("transform") == "l2_last":
        x = x / x.norm(dim=-1, keepdim=True)
    return x.to(dtype).requires_grad_()


def compare(case: dict[str, Any], dtype: torch.dtype) -> float:
    """Largest error of output and gradients."""
    x = {name: drawn(entry, dtype) for name, entry in case["inputs"].items()}
    a = case["args"]
    size = (a["height"], a["width"])
    q, scaled, k, v = (x[n].unflatten(2, size).permute(0, 2, 3, 1, 4) for n in ("q", "q_scaled", "k", "v"))
    out = aggregated_attention(
        scaled, k, v, x["k_pool"].transpose(1, 2), x["v_pool"].transpose(1, 2), a["window_size"], bias=x["rpb_local"],
        pool_bias=x["pool_bias"].unflatten(1, size), token_q=q, tokens=x["tokens"],
        token_bias=x["token_bias"].squeeze(1),
    ).permute(0, 3, 1, 2, 4).flatten(2, 3)  # fmt: skip
    (out * records.cotangent(out.shape, dtype)).sum().backward()
    errors = [records.error(out, case["outputs"]["out"])]
    for name, digest in case["grads"].items():
        # With one pooled pixel some gradients are sums that cancel: they have no scale of their own.
        small = digest["l2"] < 1e-12
        errors.append(x[name].grad.abs().max().item() if small else records.error(x[name].grad, digest))
    return max(errors)


def test_agrees_in_float64(case: dict[str, Any]) -> None:
    assert compare(case, torch.float64) < 1e-9


def test_agrees_in_float32(case: dict[str, Any]) -> None:
    assert compare(case, torch.float32) < 1e-4


def test_agrees_row_by_row(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregated_torch, "CHUNK", 1)
    assert compare(case, torch.float64) < 1e-9


def test_softmax_agrees(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Over window positions first, then pooled pixels."""
    found = []
    compute = aggregated_torch.attention_weights
    monkeypatch.setattr(aggregated_torch, "attention_weights", lambda *a: found.append(compute(*a)) or found[-1])
    compare(case, torch.float64)
    assert records.error(found[0].flatten(2, 3), case["outputs"]["attn"]) < 1e-9
