# SPDX-License-Identifier: Apache-2.0
"""Partial convolution and attention agree with their reference: outputs, gradients, and running statistics."""

import records
import torch

from visionattn.layers.partial import (
    PartialChannelAttention,
    PartialConvolution,
    PartialSelfAttention,
    PartialSpatialGate,
)
from visionattn.models import convert
from visionattn.models.partialnet import KEYS


def pytest_generate_tests(metafunc):
    found = [p for p in records.paths(metafunc.config) if p.parent.name == "ops" and p.name == "partialnet.json.gz"]
    cases = [case for path in found for case in records.load(path)["cases"]]
    metafunc.parametrize("case", cases, ids=[case["name"] for case in cases])


class Host(torch.nn.Module):
    """Where the layer has the place that it has in the network."""

    def __init__(self, layer, is_gate):
        super().__init__()
        self.mlp, self.attn = (torch.nn.Module(), None) if is_gate else (None, layer)
        if is_gate:
            self.mlp.gate = layer


def built(case):
    """Layer of a record, and the name that its place has in the reference."""
    args, names = case["args"], {name for name, *_ in case["state"]}
    if args["class"] == "partial_spatial_attn_layer_reverse":
        return PartialSpatialGate(args["dim"]), "x.mlp.4."
    if "attn.qkv.weight" in names:
        heads = 4 if args.get("patnet_t0", True) else 6
        return PartialSelfAttention(args["dim"], heads, args["n_div"]), "x.spatial_mixing."
    kind = PartialChannelAttention if "attn.cfc1.weight" in names else PartialConvolution
    return kind(args["dim"], 1, args["n_div"]), "x.spatial_mixing."


def compare(case, dtype):
    """Largest error of output, gradients and running statistics."""
    layer, place = built(case)
    host = torch.nn.Module()
    host.x = Host(layer, "mlp" in place)
    entries = {f"{place}{name}": t for name, t in records.state_dict(case, constants=True).items()}
    host.double().load_state_dict(convert(entries, host, [KEYS]))
    host.to(dtype).train(case["args"]["mode"] == "train")
    given = case["inputs"]["x"]
    x = records.draw(given["shape"], given["seed_name"], given["scale"], dtype).requires_grad_()
    out = layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    errors = [records.error(out, case["outputs"]["out"])]
    (out * records.cotangent(out.shape, dtype)).sum().backward()
    errors.append(records.error(x.grad, case["grads"]["x"]))
    named = dict(host.named_parameters())
    errors += [
        records.error(named[KEYS.rename(place + name)[0]].grad.reshape(digest["shape"]), digest)
        for name, digest in case["param_grads"].items()
    ]
    buffers = dict(host.named_buffers())
    for name, digest in case.get("buffers_after", {}).items():
        errors.append(records.error(buffers[KEYS.rename(place + name)[0]], digest))
    return max(errors)


def test_agrees_in_float64(case):
    assert compare(case, torch.float64) < 1e-9


def test_agrees_in_float32(case):
    assert compare(case, torch.float32) < 1e-4
