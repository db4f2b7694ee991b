# SPDX-License-Identifier: Apache-2.0
"""Dynamic convolution and merged branches agree with their references: outputs, gradients, merged weights."""

from pathlib import Path

import pytest
import records
import torch

from visionattn.kernels import dynamic_convolution
from visionattn.layers import DilatedReparam
from visionattn.models.overlock import AUTHORS

OPS = ("neighborhood_av", "dilated_reparam")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each case of the record that the test reads."""
    op = OPS[metafunc.function is test_merged_branches_agree]
    paths: list[Path] = [p for p in records.paths(metafunc.config) if p.name == f"{op}.json.gz"]
    metafunc.parametrize("case", [pytest.param(c, id=c["name"]) for p in paths for c in records.load(p)["cases"]])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_dynamic_convolution_agrees(case, dtype, tolerance):
    attn, value = (
        records.draw(i["shape"], i["seed_name"], i["scale"]) for i in (case["inputs"][n] for n in ("attn", "value"))
    )
    attn, value = (t.to(dtype).requires_grad_() for t in (attn.softmax(-1), value))
    maps = (t.permute(0, 2, 3, 1, 4) for t in (attn, value))
    out = dynamic_convolution(*maps, case["args"]["kernel_size"]).permute(0, 3, 1, 2, 4)
    (out * records.cotangent(out.shape, dtype)).sum().backward()
    found = {"out": out, "attn": attn.grad, "value": value.grad}
    assert max(records.error(found[k], d) for k, d in {**case["outputs"], **case["grads"]}.items()) < tolerance


def test_merged_branches_agree(case):
    args = case["args"]
    layer = DilatedReparam(args["channels"], args["kernel_size"]).double().eval()
    assert [[b.conv.kernel_size[0], b.conv.dilation[0]] for b in layer.branches.values()] == args["branches"]
    assert layer.norm.eps == args["bn_eps"]
    entries = {name: torch.from_numpy(records.fill(args["prefix"] + name, shape)) for name, shape in case["state"]}
    renamed = {AUTHORS.rename(f".{name}")[0].removeprefix("."): tensor for name, tensor in entries.items()}
    layer.load_state_dict(renamed, strict=False)
    assert len(renamed) == sum("num_batches" not in name for name in layer.state_dict())
    x = records.image(case["input"])
    outputs = {"out": layer(x)}
    layer.fuse()
    outputs |= {"merged.weight": layer.conv.weight, "merged.bias": layer.conv.bias}
    assert max(records.error(outputs[key], digest) for key, digest in case["outputs"].items()) < 1e-9
    assert records.error(layer(x), case["outputs"]["out"]) < 1e-9
