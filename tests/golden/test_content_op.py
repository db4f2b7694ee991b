# SPDX-License-Identifier: Apache-2.0
"""Content attention agrees with its reference: outputs, gradients, and the order that tokens are sorted into."""

import math

import pytest
import records
import torch

from visionattn.kernels.clustered import balanced_order
from visionattn.layers import ContentAttention, splits_for

NAME = "boat_content_attention.json.gz"


def pytest_generate_tests(metafunc):
    found = [p for p in records.paths(metafunc.config) if p.parent.name == "ops" and p.name == NAME]
    cases = [case for path in found for case in records.load(path)["cases"]]
    metafunc.parametrize("case", cases, ids=[case["name"] for case in cases])


def loaded(case, dtype):
    args = case["args"]
    layer = ContentAttention(
        args["dim"], args["num_heads"], pair_images=True, qkv_bias=args.get("qkv_bias", True), qk_scale=args["scale"]
    )
    entries = {name.replace("get_v.", "lepe."): t for name, t in records.state_dict(case).items()}
    layer.double().load_state_dict(entries)
    return layer.to(dtype)


def compare(case, dtype):
    """Largest error of output, gradients and, where no rounding disturbs it, order."""
    layer = loaded(case, dtype)
    given = case["inputs"]["x"]
    side = math.isqrt(given["shape"][1])
    x = records.draw(given["shape"], given["seed_name"], given["scale"], dtype).requires_grad_()
    out = layer(x.unflatten(1, (side, side))).flatten(1, 2)
    errors = [records.error(out, case["outputs"]["out"])]
    (out * records.cotangent(out.shape, dtype)).sum().backward()
    errors.append(records.error(x.grad, case["grads"]["x"]))
    total = math.sqrt(sum(p.grad.double().square().sum().item() for p in layer.parameters()))
    errors.append(abs(total / case["grad_total_l2"] - 1))
    if dtype == torch.float64:
        q = layer.project_in(x.unflatten(1, (side, side)))[0].flatten(1, 2).transpose(1, 2)
        order = balanced_order(q, splits_for(side, side), side**2)
        errors.append(records.error(order, case["outputs"]["order"]))
    return max(errors)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=str)
def test_agrees(case, dtype, tolerance):
    assert compare(case, dtype) < tolerance
