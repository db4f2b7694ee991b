# SPDX-License-Identifier: Apache-2.0
"""Modules agree with what their references computed, weights included: outputs, gradients, running statistics."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import records
import torch
from torch import Tensor, nn

from visionattn.layers import BAM, CBAM, ULSAM, EfficientAttention, PolarizedAttention, TripletAttention
from visionattn.models.cbam import KEYS as CBAM_KEYS
from visionattn.models.psa import GATE as POLARIZED_KEYS
from visionattn.models.triplet import GATE as TRIPLET_KEYS

Arguments = dict[str, Any]
State = dict[str, Tensor]
# What a truly zero gradient may be, beside others of order 1: biases before a batch norm or a softmax.
ROUNDING = 1e-11


def cbam(a: Arguments) -> nn.Module:
    if "gate_channel" in a:
        return BAM(a["gate_channel"], square_pool=True)
    return CBAM(a["gate_channels"], a["reduction_ratio"], pools=a["pool_types"], spatial=not a["no_spatial"])


def triplet(a: Arguments) -> nn.Module:
    return TripletAttention(kernel_size=a["kernel_size"], spatial=not a["no_spatial"])


def efficient(a: Arguments) -> nn.Module:
    return EfficientAttention(a["in_channels"], a["key_channels"], a["value_channels"], a["head_count"])


MODULES: dict[str, Callable[[Arguments], nn.Module]] = {
    "cbam": cbam,
    "triplet": triplet,
    "ulsam": lambda a: ULSAM(a["nin"], a["num_splits"]),
    "psa": lambda a: PolarizedAttention(a["planes"], sequential=a["class"] == "PSA_s"),
    "efficient_attention": efficient,
}


def renamed(keys: Any) -> Callable[[State], State]:
    """Ours of a reference's entries, by the rules of a key map."""

    def ours(entries: State) -> State:
        result = {}
        for name, tensor in entries.items():
            for pattern, replacement in ((key[0], key[1]) for key in keys):
                # A gate's names follow a dot inside a network.
                name = re.sub(pattern, replacement, f".{name}").removeprefix(".")
            result[name] = tensor
        return result

    return ours


def joined(entries: State) -> State:
    """The reference has modules of its own for every group, ours are side by side."""
    names = {"conv_dws": "scale", "bn_dws": "scale_bn", "conv_point": "point", "bn_point": "point_bn"}
    parts: dict[str, list[Tensor]] = {}
    for name, tensor in entries.items():
        _, _, module, entry = name.split(".")
        if tensor.ndim:  # counters are no part of it
            parts.setdefault(f"{names[module]}.{entry}", []).append(tensor)
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


TO_OURS: dict[str, Callable[[State], State]] = {
    "cbam": renamed(CBAM_KEYS.keys),
    "triplet": renamed(TRIPLET_KEYS),
    "ulsam": joined,
    "psa": renamed(POLARIZED_KEYS),
    "efficient_attention": renamed(()),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each case of each module's record."""
    if "case" not in metafunc.fixturenames:
        return
    cases = []
    for path in records.paths(metafunc.config):
        op = path.name.removesuffix(".json.gz")
        if path.parent.name == "ops" and op in MODULES:
            cases += [pytest.param(op, case, id=f"{op}-{case['name']}") for case in records.load(path)["cases"]]
    metafunc.parametrize(("op", "case"), cases)


def loaded(op: str, case: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    """Module with the record's weights, every one of which has its place."""
    module = MODULES[op](case["args"]).to(dtype).train(case["args"]["mode"] == "train")
    state = TO_OURS[op](records.state_dict(case, dtype))
    state = {name: tensor.reshape(module.state_dict()[name].shape) for name, tensor in state.items()}
    result = module.load_state_dict(state, strict=False)
    assert not result.unexpected_keys and all("num_batches_tracked" in name for name in result.missing_keys)
    return module


def placed(op: str, case: dict[str, Any], values: dict[str, Any]) -> dict[str, tuple[Any, Tensor]]:
    """Digests of the reference's entries, each with a selector of the same entry among ours."""
    entries = {name: torch.full(shape, i) for i, (name, shape, _) in enumerate(case["state"])}
    ours = TO_OURS[op](entries)
    found = {}
    for i, (name, _, _) in enumerate(case["state"]):
        if name in values:
            (where,) = [(n, t == i) for n, t in ours.items() if bool((t == i).any())]
            found[name] = (values[name], *where)
    return found


def selected(tensor: Tensor, mask: Tensor, digest: dict[str, Any]) -> Tensor:
    return tensor.reshape(mask.shape)[mask].reshape(digest["shape"])


def rms(digest: dict[str, Any]) -> float:
    return digest["l2"] / math.sqrt(math.prod(digest["shape"]))


def compare(op: str, case: dict[str, Any], dtype: torch.dtype) -> float:
    """Largest error of outputs, gradients and, after training, running statistics."""
    module = loaded(op, case, dtype)
    (name, drawn), *_ = case["inputs"].items()
    x = records.draw(drawn["shape"], drawn["seed_name"], drawn["scale"], dtype).requires_grad_()
    out = module(x)
    errors = [records.error(out, case["outputs"]["out"])]
    (out * records.cotangent(out.shape, dtype)).sum().backward()
    errors.append(records.error(x.grad, case["grads"][name]))
    grads = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in module.named_parameters()}
    largest = max(map(rms, case["param_grads"].values()))
    for digest, ours, mask in placed(op, case, case["param_grads"]).values():
        grad = selected(grads[ours], mask, digest)
        if rms(digest) <= ROUNDING * largest:
            errors.append(grad.abs().max().item() / largest)
        else:
            # Sums that cancel, those over a softmax or a batch norm, keep the rounding of their terms.
            scale = rms(digest) / largest if dtype == torch.float32 else 1.0
            errors.append(records.error(grad, digest) * scale)
    buffers = {n: d for n, d in case.get("buffers_after", {}).items() if "num_batches" not in n}
    for digest, ours, mask in placed(op, case, buffers).values():
        errors.append(records.error(selected(module.state_dict()[ours], mask, digest), digest))
    return max(errors)


def test_module_agrees_in_float64(op: str, case: dict[str, Any]) -> None:
    assert compare(op, case, torch.float64) < 1e-9


def test_module_agrees_in_float32(op: str, case: dict[str, Any]) -> None:
    assert compare(op, case, torch.float32) < 1e-4
