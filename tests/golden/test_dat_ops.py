# SPDX-License-Identifier: Apache-2.0
"""Deformable attention agrees with DAT's two generations and with Deformable DETR: points, outputs and gradients."""

import math
from typing import Any

import pytest
import records
import torch
from torch import Tensor

from visionattn.kernels import deformable_attention, deformable_torch, ms_deform_attn, sample_points
from visionattn.layers import DeformableAttention, MultiScaleDeformableAttention
from visionattn.layers.deformable import sampling_points

OPS = ("deformable_attention", "ms_deform_attn")
MODULE = "ms_deform_attn_module"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each case of each op's record, and for each run of the module's."""
    found = {p.name.removesuffix(".json.gz"): p for p in records.paths(metafunc.config) if p.parent.name == "ops"}
    if "case" in metafunc.fixturenames:
        cases = [(op, case) for op in OPS if op in found for case in records.load(found[op])["cases"]]
        metafunc.parametrize(("op", "case"), [pytest.param(*c, id=f"{c[0]}-{c[1]['name']}") for c in cases])
    if "run" in metafunc.fixturenames:
        record = records.load(found[MODULE]) if MODULE in found else {"runs": []}
        runs = [pytest.param(record, run, id=f"{run['reference_dims']}-{run['padded']}") for run in record["runs"]]
        metafunc.parametrize(("record", "run"), runs)


def drawn(entry: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """Input of a case."""
    x = entry["shift"] + records.draw(entry["shape"], entry["seed_name"], entry["scale"])
    if entry["transform"] == "softmax_last2":
        x = x.flatten(-2).softmax(-1).view(entry["shape"])
    return x.to(dtype).requires_grad_()


def convention(a: dict[str, Any]) -> dict[str, Any]:
    """Our arguments for a generation's treatment of offsets."""
    factor, is_first = a["offset_range_factor"], a["generation"] == "v1"
    limited = factor > 0 or (factor == 0 and not is_first)
    bound = None if factor >= 0 else "tanh" if is_first else "clamp"
    return {"grid": "centers" if is_first else "corners", "offset_range": factor if limited else None, "bound": bound}


def deformable(x: dict[str, Tensor], a: dict[str, Any]) -> dict[str, Tensor]:
    """The core of DAT's layer, of our parts."""
    q, maps, offset = (x[name].permute(0, 2, 3, 1) for name in ("q", "x", "offset"))
    grid = convention(a)
    points = sampling_points(offset.unflatten(0, (q.shape[0], -1)), **grid)
    samples = sample_points(maps, points)
    k, v = (samples @ x[f"w_{name}"].T + x[f"b_{name}"] for name in "kv")
    q, k, v = (t.unflatten(-1, (a["heads"], -1)) for t in (q, k, v))
    if a["position"] == "log_cpb":
        layer = DeformableAttention(maps.shape[-1], a["heads"], a["groups"], position="mlp").to(q.dtype)
        layer.cpb_mlp = Network(x)
        out = layer._attend(q, k, v, layer._network_bias(points, *maps.shape[1:3]))
    else:
        out = deformable_attention(q, k, v, points, x.get("rpe_table"), grid=grid["grid"])
    return {"out": out.flatten(3).permute(0, 3, 1, 2), "pos": points.unflatten(2, offset.shape[1:3])}


class Network(torch.nn.Sequential):
    """The network of the position bias, with a record's weights."""

    def __init__(self, x: dict[str, Tensor]) -> None:
        super().__init__(torch.nn.Linear(2, 1))
        self[0].weight.data = x["cpb_w1"].data  # for its dtype
        self.x = x

    def forward(self, way: Tensor) -> Tensor:
        return (way @ self.x["cpb_w1"].T + self.x["cpb_b1"]).relu() @ self.x["cpb_w2"].T


def multi_scale(x: dict[str, Tensor], a: dict[str, Any]) -> dict[str, Tensor]:
    shapes = torch.tensor(a["spatial_shapes"])
    return {"out": ms_deform_attn(x["value"], shapes, None, x["sampling_locations"], x["attention_weights"])}


def compare(op: str, case: dict[str, Any], dtype: torch.dtype) -> float:
    """Largest error of outputs and gradients."""
    x = {name: drawn(entry, dtype) for name, entry in case["inputs"].items()}
    outputs = (deformable if op == "deformable_attention" else multi_scale)(x, case["args"])
    errors = [records.error(tensor, case["outputs"][name]) for name, tensor in outputs.items()]
    (outputs["out"] * records.cotangent(outputs["out"].shape, dtype)).sum().backward()
    for name, digest in case["grads"].items():
        grad = x[name].grad
        if digest is None:  # truly zero
            assert grad is None or grad.abs().max() < (1e-11 if dtype == torch.float64 else 1e-3)
        else:
            errors.append(records.error(grad, digest, 1.0 if dtype == torch.float64 else 0.9))
    return max(errors)


def test_op_agrees_in_float64(op: str, case: dict[str, Any]) -> None:
    assert compare(op, case, torch.float64) < 1e-9


def test_op_agrees_in_float32(op: str, case: dict[str, Any]) -> None:
    # Rounding moves some points across a pixel, where the gradient jumps.
    assert compare(op, case, torch.float32) < 1e-4


def test_tracers_path_agrees(op: str, case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What compile and export see, all queries at once; and levels whose sizes are tensors."""
    monkeypatch.setattr(deformable_torch, "is_traced", lambda x: True)
    assert compare(op, case, torch.float64) < 1e-9
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert compare(op, case, torch.float64) < 1e-9


def test_module_agrees(record: dict[str, Any], run: dict[str, Any]) -> None:
    config = record["config"]
    layer = MultiScaleDeformableAttention(*(config[n] for n in ("d_model", "n_heads", "n_levels", "n_points"))).double()
    layer.load_state_dict(records.state_dict(record))
    batch, queries, dim = config["batch"], config["queries"], config["d_model"]
    pixels = sum(math.prod(shape) for shape in config["spatial_shapes"])
    shapes = {"query": (batch, queries, dim), "input_flatten": (batch, pixels, dim),
              "reference_points": (batch, queries, config["n_levels"], run["reference_dims"])}  # fmt: skip
    x = {name: records.draw(shape, name) for name, shape in shapes.items()}
    x["reference_points"] = x["reference_points"].sigmoid()
    for tensor in x.values():
        tensor.requires_grad_()
    mask = torch.zeros(batch, pixels, dtype=torch.bool)
    mask[-1, pixels - pixels // 5 :] = run["padded"]
    out = layer(x["query"], x["reference_points"], x["input_flatten"], config["spatial_shapes"], padding_mask=mask)
    assert records.error(out, run["outputs"]["out"]) < 1e-9
    (out * records.cotangent(out.shape)).sum().backward()
    assert max(records.error(x[name].grad, digest) for name, digest in run["grads"].items()) < 1e-9
    total = math.sqrt(sum(p.grad.pow(2).sum().item() for p in layer.parameters()))
    assert total == pytest.approx(run["grad_total_l2"], rel=1e-9)
