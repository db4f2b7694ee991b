# SPDX-License-Identifier: Apache-2.0
"""The ops agree with what their references computed: outputs, log-sum-exps and gradients, in float64 and float32."""

import math
from collections.abc import Callable
from typing import Any

import interpreter
import pytest
import records
import torch
from torch import Tensor

from visionattn.kernels import halo_attention, local_torch, neighborhood_attention, use_backend, window_attention

Arguments = dict[str, Any]


def neighborhood(x: dict[str, Tensor], a: Arguments) -> tuple[Tensor, Tensor]:
    return neighborhood_attention(
        x["q"], x["k"], x["v"], a["kernel_size"], stride=a["stride"], dilation=a["dilation"], is_causal=a["is_causal"],
        scale=a["scale"], bias=x.get("rpb"), extra_k=x.get("extra_k"), extra_v=x.get("extra_v"), return_lse=True,
    )  # fmt: skip


def window(x: dict[str, Tensor], a: Arguments) -> tuple[Tensor, Tensor]:
    height, width = a["window"]
    # The reference's table counts query minus key.
    table = x["table"].T.reshape(-1, 2 * height - 1, 2 * width - 1).flip(1, 2)
    return window_attention(
        x["q"], x["k"], x["v"], a["window"], shift=a["shift"], scale=a["scale"], bias=table,
        pad_k=x.get("k_pad"), pad_v=x.get("v_pad"), return_lse=True,
    )  # fmt: skip


def halo(x: dict[str, Tensor], a: Arguments) -> tuple[Tensor, Tensor]:
    return halo_attention(
        x["q"], x["k"], x["v"], a["block"], a["halo"], query_stride=a["block"] // a["block_q"], scale=a["scale"],
        rel_tables=(x["height_rel"], x["width_rel"]), scale_rel=a["scale_pos"], return_lse=True,
    )  # fmt: skip


OPS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "neighborhood_attention": neighborhood,
    "window_attention": window,
    "halo_attention": halo,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each case of each op's record."""
    if "case" not in metafunc.fixturenames:
        return
    cases = []
    for path in records.paths(metafunc.config):
        if path.parent.name != "ops":
            continue
        op = path.name.removesuffix(".json.gz")
        if op in OPS:
            for index, case in enumerate(records.load(path)["cases"]):
                # The interpreter takes seconds a case: some small ones by default, all with -m slow.
                large = math.prod(case["inputs"]["q"]["shape"][:-1]) > 200
                slow = "triton" in metafunc.function.__name__ and (large or index % 5 != 1)
                marks = [pytest.mark.slow] if slow else []
                cases.append(pytest.param(op, case, id=f"{op}-{case['name']}", marks=marks))
    metafunc.parametrize(("op", "case"), cases)


def compare(op: str, case: dict[str, Any], dtype: torch.dtype) -> float:
    """Largest error of all outputs and gradients."""
    x = {
        name: records.draw(i["shape"], i["seed_name"], i["scale"], dtype).requires_grad_()
        for name, i in case["inputs"].items()
    }
    out, lse = OPS[op](x, case["args"])
    errors = [records.error(out, case["outputs"]["out"])]
    if "lse" in case["outputs"]:
        errors.append(records.error(lse, case["outputs"]["lse"]))
    (out * records.cotangent(out.shape, dtype)).sum().backward()
    for name, digest in case["grads"].items():
        grad = x[name].grad
        errors.append(records.error(torch.zeros_like(x[name]) if grad is None else grad, digest))
    return max(errors)


def test_op_agrees_in_float64(op: str, case: dict[str, Any]) -> None:
    assert compare(op, case, torch.float64) < 1e-9


def test_op_agrees_in_float32(op: str, case: dict[str, Any]) -> None:
    assert compare(op, case, torch.float32) < 1e-4


def test_tracers_path_agrees(op: str, case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What compile and export see is another walk over the same tiles."""
    everything = lambda options, *tensors: local_torch._all_at_once(options, False, *tensors)  # noqa: E731
    monkeypatch.setattr(local_torch._Tiled, "apply", everything)
    assert compare(op, case, torch.float64) < 1e-9


def test_triton_agrees_in_float32(op: str, case: dict[str, Any]) -> None:
    """In the interpreter where there is no GPU."""
    pytest.importorskip("triton")
    interpreter.prepare()
    with use_backend("triton"):
        assert compare(op, case, torch.float32) < 1e-4
