# SPDX-License-Identifier: Apache-2.0
"""Holds an accelerated model to what the library's own code computes with the same weights and images."""

import copy

import torch
from torch import nn

from visionattn import accelerate


def stir(model: nn.Module) -> nn.Module:
    """Moves all parameters off the values that hide mistakes: zero biases and tables, equal scales."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def flat(output) -> torch.Tensor:
    if isinstance(output, torch.Tensor):
        return output.flatten()
    values = output.values() if isinstance(output, dict) else output
    return torch.cat([flat(value) for value in values if value is not None])


def run(model: nn.Module, image: torch.Tensor, weights: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Output, and gradients of a random projection of it with respect to the image and to every parameter."""
    image = image.detach().requires_grad_()
    model.zero_grad()
    output = flat(model(image))
    loss = output.pow(2).sum() if weights is None else (output * weights).sum()
    loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"output": output.detach(), "image": image.grad, **grads}


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    # Gradients that are zero in exact arithmetic (of key biases, say) are rounding noise on both sides.
    noise = tolerance * max(float(theirs[name].abs().max()) for name in theirs if name not in ("output", "image"))
    for name, expected in theirs.items():
        error = float((ours[name] - expected).abs().max())
        assert error <= tolerance * float(expected.abs().max()) + noise * 1e-2, f"{name}: off by {error:.1e}"


def assert_accelerated_equals(
    model: nn.Module, size: tuple[int, int], count: int, batch: int = 2, tolerance: float = 1e-9
) -> nn.Module:
    """Checks a model that has `count` modules to replace, in float64 and float32; returns the accelerated one."""
    model = stir(model)
    fast = copy.deepcopy(model)
    report = accelerate(fast)
    assert (len(report.replaced), report.left) == (count, ())
    image = torch.randn(batch, 3, *size)
    assert_equal(run(fast.double(), image.double()), run(model.double(), image.double()), tolerance)
    with torch.no_grad():
        ours, theirs = (flat(m.float()(image)) for m in (fast, model))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
    assert fast.state_dict().keys() == model.state_dict().keys()
    return fast
