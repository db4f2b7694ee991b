# SPDX-License-Identifier: Apache-2.0
"""Flow attention against its definition, token by token; gradients, memory, half precision, errors."""

import math

import pytest
import torch

from visionattn.kernels import explain, flow_attention, use_backend


def tokens(size=(3, 4), key_size=(2, 5), heads=2, batch=2, scale=1.0):
    q, k = (scale * torch.randn(batch, *s, heads, 4, dtype=torch.float64) for s in (size, key_size))
    v = torch.randn(batch, *key_size, heads, 5, dtype=torch.float64)
    return [t.requires_grad_() for t in (q, k, v)]


def head_defined(q, k, v, eps, flow_eps):
    """Output (N, V) of one head of one image."""
    sinks, sources = (1 / (1 + (-t).exp()) for t in (q, k))
    wide = lambda t: t + eps  # noqa: E731
    every = lambda rows: wide(sum(rows))  # noqa: E731
    incoming = [wide(s) @ every(sources) + flow_eps for s in sinks]
    outgoing = [wide(s) @ every(sinks) + flow_eps for s in sources]
    kept_sink = [
        wide(s) @ every([t / o for t, o in zip(sources, outgoing, strict=True)]) + flow_eps for s in sinks]  # fmt: skip
    kept_source = [
        wide(s) @ every([t / i for t, i in zip(sinks, incoming, strict=True)]) + flow_eps for s in sources]  # fmt: skip
    competition = torch.stack(kept_source).clamp(-1, 1).exp()
    competition = competition / competition.sum() * len(k)
    rows = []
    for sink, arrives, kept in zip(sinks, incoming, kept_sink, strict=True):
        taken = sum(sink @ s * c * value for s, c, value in zip(sources, competition, v, strict=True))
        rows.append(taken / arrives / (1 + (-kept * len(q) / len(k)).exp()))
    return torch.stack(rows)


@pytest.mark.parametrize("eps", [(1e-6, 0.0), (0.02, 0.05)], ids=str)
@pytest.mark.parametrize("size", [(3, 4), (1, 1)], ids=str)
def test_sources_compete_and_sinks_allocate(size, eps):
    q, k, v = tokens(size)
    out = flow_attention(q, k, v, eps=eps[0], flow_eps=eps[1])
    flat = [t.flatten(1, -3) for t in (q, k, v)]
    heads = [[head_defined(*(t[b, :, h] for t in flat), *eps) for h in range(2)] for b in range(2)]
    expected = torch.stack([torch.stack(image, 1) for image in heads]).reshape(out.shape)
    assert torch.allclose(out, expected, rtol=1e-11)
    cotangent = torch.randn_like(out)
    grads, defined = (torch.autograd.grad(o, (q, k, v), cotangent) for o in (out, expected))
    assert all(torch.allclose(a, b) for a, b in zip(grads, defined, strict=True))


def test_gradients_are_right_twice():
    q, k, v = tokens((1, 3), (1, 2), 1, 1)
    assert torch.autograd.gradcheck(flow_attention, (q, k, v))
    assert torch.autograd.gradgradcheck(flow_attention, (q, k, v))


def test_memory_grows_with_the_tokens_not_with_their_square():
    q, k, v = (torch.randn(1, 3000, 1, 8) for _ in range(3))
    largest = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            largest.extend([out.numel()] if isinstance(out, torch.Tensor) else [])
            return out

    with Watch():
        flow_attention(q, k, v)
    assert max(largest) <= q.numel()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_sums_in_float32(dtype):
    low = [t.detach().to(dtype) for t in tokens((64, 64), (64, 64), scale=4.0)]  # sums beyond what float16 counts
    out, exact = flow_attention(*low), flow_attention(*(t.double() for t in low))
    assert out.dtype == dtype
    assert (out.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()
    with torch.autocast("cpu", dtype):
        mixed = flow_attention(*(t.float() for t in low))
    assert (mixed.double() - exact).abs().max() <= 16 * torch.finfo(dtype).eps * exact.abs().max()


def test_a_large_share_of_saturated_keys_stays_finite():
    q, k, v = (t.detach().float() for t in tokens())
    for shift in (-90.0, 90.0):
        out = flow_attention(q + shift, k + shift, v, flow_eps=1e-6)
        assert torch.isfinite(out).all()


def test_wrong_arguments_are_named():
    q, k, v = tokens()
    for kwargs in ({"eps": -1.0}, {"flow_eps": -math.inf}):
        name, value = next(iter(kwargs.items()))
        with pytest.raises(ValueError, match=f"^{name}={value} must not be negative"):
            flow_attention(q, k, v, **kwargs)
    with pytest.raises(TypeError, match="q, k, v must share one floating-point dtype"):
        flow_attention(q, k, v.float())
    with pytest.raises(ValueError, match="must agree in batch"):
        flow_attention(q[:1], k, v)
    assert explain(flow_attention, q, k, v).startswith("torch")
    with use_backend("triton"), pytest.raises(RuntimeError, match="it has no flow_attention"):
        flow_attention(q, k, v)
