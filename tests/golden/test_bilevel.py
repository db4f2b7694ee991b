# SPDX-License-Identifier: Apache-2.0
"""Bi-level routing attention agrees with both of its references: outputs, chosen regions and gradients."""

from typing import Any

import pytest
import records
import torch
from torch import Tensor

from visionattn.layers import BilevelAttention
from visionattn.models.biformer import CONV_LAYOUT, bilevel_args

OPS = ("bilevel_routing_attention", "bilevel_routing_attention_nhwc")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each case of each record."""
    cases = []
    for path in records.paths(metafunc.config):
        op = path.name.removesuffix(".json.gz")
        if path.parent.name == "ops" and op in OPS:
            cases += [pytest.param(op, case, id=f"{op}-{case['name']}") for case in records.load(path)["cases"]]
    metafunc.parametrize(("op", "case"), cases)


class Watched(BilevelAttention):
    """Keeps the regions that it chose."""

    def _choose(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        self.routes, self.weights = super()._choose(q, k)
        return self.routes, self.weights


def layer_of(op: str, a: dict[str, Any], inputs: dict[str, Tensor]) -> Watched:
    """Mixer with the arguments of a reference's operator."""
    if op == "bilevel_routing_attention":
        dim = inputs["value"].shape[1]
        return Watched(dim, a["num_heads"], a["n_win"], a["topk"], 0, True, qk_scale=a["scale"])
    return Watched(a["dim"], a["num_heads"], **bilevel_args(a))


def loaded(layer: Watched, case: dict[str, Any], dtype: torch.dtype) -> Watched:
    """Mixer with the record's weights under the names of the key map."""
    if "state" in case:
        state = {CONV_LAYOUT.rename(f".attn.{n}")[0].removeprefix(".attn."): t
                 for n, t in records.state_dict(case, dtype).items()}  # fmt: skip
        layer.load_state_dict(state)
    return layer


def output(op: str, layer: Watched, inputs: dict[str, Tensor]) -> Tensor:
    if op == "bilevel_routing_attention":
        maps = (inputs[n].permute(0, 2, 3, 1).unflatten(-1, (layer.num_heads, -1)) for n in ("query", "key", "value"))
        return layer.attend(*maps).flatten(3).permute(0, 3, 1, 2)
    return layer(inputs["x"])


def compare(op: str, case: dict[str, Any], dtype: torch.dtype) -> float:
    """Largest error of output and gradients, and of the regions and weights where the record has them."""
    inputs = {
        name: records.draw(i["shape"], i["seed_name"], i["scale"], dtype).requires_grad_()
        for name, i in case["inputs"].items()
    }
    layer = loaded(layer_of(op, case["args"], inputs).to(dtype), case, dtype)
    out = output(op, layer, inputs)
    errors = [records.error(out, case["outputs"]["out"])]
    if "routed" in case["outputs"]:
        errors.append(records.error(layer.routes.to(dtype), case["outputs"]["routed"]))
    if "r_weight" in case["outputs"]:
        errors.append(records.error(layer.weights, case["outputs"]["r_weight"]))
    (out * records.cotangent(out.shape, dtype)).sum().backward()
    errors += [records.error(inputs[name].grad, digest) for name, digest in case["grads"].items()]
    return max(errors)


def test_agrees_in_float64(op: str, case: dict[str, Any]) -> None:
    assert compare(op, case, torch.float64) < 1e-9


def test_agrees_in_float32(op: str, case: dict[str, Any]) -> None:
    # No routing decision of these cases is as close as float32 rounds.
    assert compare(op, case, torch.float32) < 1e-4
