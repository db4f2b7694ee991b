# SPDX-License-Identifier: Apache-2.0
"""Relative attention agrees with what its reference computed: outputs and gradients."""

from typing import Any

import pytest
import records
import torch

from visionattn.kernels import relative_attention


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each case of the op's record."""
    paths = [p for p in records.paths(metafunc.config) if p.name == "bottleneck_attention.json.gz"]
    cases = [pytest.param(case, id=case["name"]) for path in paths for case in records.load(path)["cases"]]
    metafunc.parametrize("case", cases)


def compare(case: dict[str, Any], dtype: torch.dtype) -> float:
    """Largest error of output and gradients."""
    x = {
        name: records.draw(i["shape"], i["seed_name"], i["scale"], dtype).requires_grad_()
        for name, i in case["inputs"].items()
    }
    tables = (x["height_rel"], x["width_rel"])
    options = {"scale": case["args"]["scale"], "scale_rel": case["args"]["scale_pos"]}
    out = relative_attention(x["q"], x["k"], x["v"], tables, **options)
    (out * records.cotangent(out.shape, dtype)).sum().backward()
    errors = [records.error(out, case["outputs"]["out"])]
    return max(errors + [records.error(x[name].grad, digest) for name, digest in case["grads"].items()])


def test_agrees_in_float64(case: dict[str, Any]) -> None:
    assert compare(case, torch.float64) < 1e-9


def test_agrees_in_float32(case: dict[str, Any]) -> None:
    assert compare(case, torch.float32) < 1e-4
