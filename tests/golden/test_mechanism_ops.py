# SPDX-License-Identifier: Apache-2.0
"""Mechanisms of attention agree with what their references computed: outputs, gradients of inputs and parameters."""

from collections.abc import Callable
from typing import Any

import pytest
import records
import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.kernels import flow_attention
from visionattn.kernels.linear_torch import flows_between
from visionattn.layers import AreaAttention, SpectralFilter
from visionattn.layers.circular import circular_attention
from visionattn.layers.sigmoid import sigmoid_attention
from visionattn.layers.sinkhorn import sinkhorn
from visionattn.layers.taylor import taylor_attention
from visionattn.layers.token_pooling import pool_tokens

Inputs = dict[str, Tensor]
Arguments = dict[str, Any]
# What a gradient that is zero but for rounding may be.
ROUNDING = 1e-11


def sigmoid(x: Inputs, a: Arguments) -> dict[str, Tensor]:
    bias = None if a["bias"] == "-log n" else a["bias"]
    return {"out": sigmoid_attention(x["q"], x["k"], x["v"], bias=bias)}


def taylor(x: Inputs, a: Arguments) -> dict[str, Tensor]:
    q, k = x["q"], x["k"]
    if a["normalize_input"]:
        q, k = x["temperature"] * F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    scale = (k.shape[-2] / k.shape[-1]) ** 0.5 if a["output_normalized"] else 1
    # Both forms must give what either of the reference's gives.
    outs = [taylor_attention(q, k, x["v"], (a["a"], a["b"], a["c"]), efficient) for efficient in (False, True)]
    assert torch.allclose(*outs, rtol=1e-11 if q.dtype == torch.float64 else 1e-4, atol=1e-4)
    return {"out": scale * outs[a["path"] == "efficient"]}


def circular(x: Inputs, a: Arguments) -> dict[str, Tensor]:
    return {"out": circular_attention(x["z"], x["v"], a["direction"])}


def spectral(x: Inputs, a: Arguments) -> dict[str, Tensor]:
    tokens, heads = x["x"].shape[1], a["heads"]
    layer = SpectralFilter(x["x"].shape[2], heads, 0.0, tokens, a["adaptive"], standalone=True).to(x["x"].dtype)
    ours = {"filter": x["base_filter"].squeeze(-1), "bias": x["base_bias"].squeeze(-1), "norm.weight": x["norm_weight"],
            "norm.bias": x["norm_bias"]}  # fmt: skip
    if a["adaptive"]:
        ours |= {f"context.{2 * i}.{kind}": x[f"fc{i + 1}_{kind}"] for i in (0, 1) for kind in ("weight", "bias")}
    return {"out": torch.func.functional_call(layer, ours, (x["x"],))}


def doubly_stochastic(x: Inputs, a: Arguments) -> dict[str, Tensor]:
    weights = sinkhorn(x["q"] @ x["k"].transpose(-2, -1) * x["q"].shape[-1] ** -0.5, a["n_it"], a["eps"])
    return {"out": weights @ x["v"], "attn": weights}


def pooled(x: Inputs, a: Arguments) -> dict[str, Tensor]:
    weights = x["w_logits"].softmax(-1) if a["weighted"] else None
    centres, nearest = pool_tokens(x["x"], torch.tensor(a["centres"]), a["iterations"], weights)
    own = centres.gather(1, nearest[..., None].expand(-1, -1, centres.shape[2]))
    return {"out": centres, "assignment": nearest, "objective": (x["x"] - own).square().sum((1, 2))}


def flow(x: Inputs, a: Arguments) -> dict[str, Tensor]:
    q, k, v = (x[name].transpose(1, 2) for name in "qkv")
    options = {"eps": a["eps"], "flow_eps": a["eps"] if a["outer_eps"] else 0.0}
    flows = [t[..., 0].transpose(1, 2) for t in flows_between(q.sigmoid(), k.sigmoid(), **options)]
    names = ("sink_incoming", "source_outgoing", "conserved_sink", "conserved_source")
    return {"out": flow_attention(q, k, v, **options).transpose(1, 2), **dict(zip(names, flows, strict=True))}


OPS: dict[str, Callable[[Inputs, Arguments], dict[str, Tensor]]] = {
    "flow_attention": flow,
    "sigmoid_attention": sigmoid,
    "taylorshift": taylor,
    "cat_circular": circular,
    "fftnet": spectral,
    "sinkformer": doubly_stochastic,
    "token_pooling": pooled,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each case of each op's record."""
    if "case" not in metafunc.fixturenames:
        return
    cases = []
    for path in records.paths(metafunc.config):
        op = path.name.removesuffix(".json.gz")
        if path.parent.name != "ops" or op not in (*OPS, "area_attention"):
            continue
        wanted = [c for c in records.load(path)["cases"] if c["args"].get("class", "AAttn") == "AAttn"]
        if (op == "area_attention") == ("area" in metafunc.function.__name__):
            cases += [pytest.param(op, case, id=f"{op}-{case['name']}") for case in wanted]
    metafunc.parametrize(("op", "case"), cases)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=str)
def test_ops_agree(op: str, case: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    x = {
        name: records.draw(i["shape"], i["seed_name"], i["scale"], dtype).requires_grad_()
        for name, i in case["inputs"].items()
    }
    outputs = OPS[op](x, case["args"])
    assert set(outputs) == set(case["outputs"])
    for name, out in outputs.items():
        assert records.error(out, case["outputs"][name]) < tolerance, name
    out = outputs["out"]
    (out * records.cotangent(out.shape, dtype)).sum().backward()
    for name, digest in case["grads"].items():
        assert records.error(x[name].grad, digest) < tolerance, name


def test_area_attention_agrees(op: str, case: dict[str, Any]) -> None:
    """The module alone, in evaluation and in training; its reference's blocks are hosts of their own."""
    a, entry = case["args"], case["inputs"]["x"]
    layer = AreaAttention(a["dim"], a["num_heads"], a["area"], norm_eps=a["bn_eps"]).double()
    layer.load_state_dict(records.state_dict(case, constants=True))
    layer.train(a["mode"] == "train")
    for module in layer.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.03
    x = records.draw(entry["shape"], entry["seed_name"], entry["scale"]).requires_grad_()
    out = layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert records.error(out, case["outputs"]["out"]) < 1e-9
    (out * records.cotangent(out.shape)).sum().backward()
    if "grads" in case:
        assert records.error(x.grad, case["grads"]["x"]) < 1e-9
    parameters = dict(layer.named_parameters())
    for name, digest in case.get("param_grads", {}).items():
        grad = parameters[name].grad
        # What a batch norm subtracts has no gradient but rounding.
        zero = digest["l2"] < ROUNDING
        assert grad.norm() < ROUNDING if zero else records.error(grad, digest) < 1e-9, name
    for name, digest in case.get("buffers_after", {}).items():
        if not name.endswith("num_batches_tracked"):
            assert records.error(dict(layer.named_buffers())[name], digest) < 1e-9, name
