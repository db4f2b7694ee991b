# SPDX-License-Identifier: Apache-2.0
"""Attention of linear cost against its definitions, query by query; gradients, memory, half precision, errors."""

import pytest
import torch

from visionattn.kernels import (
    agent_attention,
    explain,
    focused_linear_attention,
    inline_attention,
    linear_torch,
    use_backend,
)


def tokens(size=(3, 4), key_size=(2, 5), heads=2, dtype=torch.float64, batch=2):
    """Queries that are a strided view of a packed map, keys and values of another map."""
    q = torch.randn(batch, *size, 3, heads, 4, dtype=dtype)[..., 1, :, :].requires_grad_()
    k, v = (torch.randn(batch, *key_size, heads, d, dtype=dtype).requires_grad_() for d in (4, 5))
    return q, k, v


def agents_of(q, k, count=3, biased=True):
    """Agents and biases for a call."""
    heads, n, m = q.shape[-2], q[0, ..., 0, 0].numel(), k[0, ..., 0, 0].numel()
    made = [torch.randn(q.shape[0], count, *q.shape[-2:], dtype=q.dtype)]
    made += [torch.randn(heads, count, m, dtype=q.dtype), torch.randn(heads, n, count, dtype=q.dtype)]
    agents, key_bias, query_bias = (t.requires_grad_() for t in made)
    return (agents, key_bias, query_bias) if biased else (agents, None, None)


def by_query(q, v, weights_of):
    """Output of every query of every image and head by itself, from its weights over the values."""
    out = q.new_empty(*q.shape[:-1], v.shape[-1])
    flat_q, flat_v, flat = q.flatten(1, 2), v.flatten(1, 2), out.flatten(1, 2)
    rows = []
    for b in range(q.shape[0]):
        for n in range(flat_q.shape[1]):
            heads = [weights_of(b, n, h, flat_q[b, n, h]) @ flat_v[b, :, h] for h in range(q.shape[3])]
            rows.append(torch.stack(heads))
    return torch.stack(rows).reshape(*out.shape) if flat.numel() else out


def agents_defined(q, k, v, agents, key_bias, query_bias, scale):
    keys = k.flatten(1, 2)

    def weights(b, n, h, query):
        gather = [(keys[b, :, h] @ a * scale + (0 if key_bias is None else key_bias[h, i])).softmax(0)
                  for i, a in enumerate(agents[b, :, h])]  # fmt: skip
        read = (agents[b, :, h] @ query * scale + (0 if query_bias is None else query_bias[h, n])).softmax(0)
        return sum(r * g for r, g in zip(read, gather, strict=True))

    return by_query(q, v, weights)


def focused_defined(q, k, v, temperature, power, eps=1e-6):
    def feature(x):
        x = (x.clamp(min=0) + eps) / temperature
        return x.norm() * x**power / (x**power).norm()  # over all heads of a token

    keys = torch.stack([torch.stack([feature(token) for token in image]) for image in k.flatten(1, 2)])
    queries = torch.stack([torch.stack([feature(token) for token in image]) for image in q.flatten(1, 2)])

    def weights(b, n, h, _):
        products = keys[b, :, h] @ queries[b, n, h]
        return products / len(products) / (products.mean() + eps)

    return by_query(q, v, weights)


def inline_defined(q, k, v, scale):
    keys = k.flatten(1, 2)

    def weights(b, n, h, query):
        logits = keys[b, :, h] @ query * scale
        return (logits - logits.mean() + 1) / len(logits)

    return by_query(q, v, weights)


def check(out, expected, inputs):
    """Values and gradients agree."""
    cotangent = torch.randn_like(out)
    grads, defined = (torch.autograd.grad(o, inputs, cotangent) for o in (out, expected))
    assert torch.allclose(out, expected)
    assert all(torch.allclose(a, b) for a, b in zip(grads, defined, strict=True))


@pytest.fixture(params=[1 << 22, 1], ids=["one chunk", "a chunk a head"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(linear_torch, "CHUNK", request.param)


@pytest.mark.parametrize("biased", [True, False])
def test_queries_read_what_agents_gathered(biased, chunk):
    q, k, v = tokens()
    agents, key_bias, query_bias = agents_of(q, k, biased=biased)
    out = agent_attention(q, k, v, agents, key_bias=key_bias, query_bias=query_bias, scale=0.4)
    expected = agents_defined(q, k, v, agents, key_bias, query_bias, 0.4)
    check(out, expected, [t for t in (q, k, v, agents, key_bias, query_bias) if t is not None])


def test_tracers_path_agrees(monkeypatch):
    q, k, v = tokens()
    agents, key_bias, query_bias = agents_of(q, k)
    call = lambda: agent_attention(q, k, v, agents, key_bias=key_bias, query_bias=query_bias)  # noqa: E731
    expected = call()
    monkeypatch.setattr(linear_torch._Chunked, "apply", lambda s, *x: linear_torch.attend(linear_torch.Agents(*x), s))
    check(call(), expected, [q, k, v, agents, key_bias, query_bias])


@pytest.mark.parametrize("power", [1, 3, 4])
def test_focused_weights_are_products_of_sharpened_features(power):
    q, k, v = tokens()
    temperature = (torch.rand(2, 4, dtype=torch.float64) + 0.5).requires_grad_()
    out = focused_linear_attention(q, k, v, temperature=temperature, power=power)
    check(out, focused_defined(q, k, v, temperature, power), [q, k, v, temperature])


@pytest.mark.parametrize("size", [(3, 4), (1, 1)], ids=str)
def test_inline_weights_are_linear_and_sum_to_one(size):
    q, k, v = tokens(size, size)
    check(inline_attention(q, k, v, scale=0.7), inline_defined(q, k, v, 0.7), [q, k, v])
    ones = torch.ones_like(v)
    assert torch.allclose(inline_attention(q, k, ones), torch.ones(*q.shape[:-1], 5, dtype=q.dtype))


def test_second_derivatives_are_right():
    q, k, v = tokens((1, 2), (1, 2), 1, batch=1)
    agents, key_bias, query_bias = agents_of(q, k, 2)
    run = lambda q, k, v, a, x, y: agent_attention(q, k, v, a, key_bias=x, query_bias=y)  # noqa: E731
    assert torch.autograd.gradgradcheck(run, (q, k, v, agents, key_bias, query_bias))
    assert torch.autograd.gradgradcheck(inline_attention, (q, k, v))
    assert torch.autograd.gradgradcheck(focused_linear_attention, (q.detach().abs().requires_grad_(), k, v))


def test_no_more_than_a_chunk_of_logits_is_computed(monkeypatch):
    q, k, v = tokens((4, 4), (3, 4), heads=3, batch=3)
    agents, key_bias, query_bias = agents_of(q, k, 5)
    monkeypatch.setattr(linear_torch, "CHUNK", 2 * 5 * 16)  # two heads
    computed = []
    attend = linear_torch.attend
    monkeypatch.setattr(
        linear_torch, "attend", lambda x, s: computed.append(x.q[..., 0].numel() * x.agents.shape[2]) or attend(x, s)
    )
    agent_attention(q, k, v, agents, key_bias=key_bias, query_bias=query_bias).sum().backward()
    assert len(computed) == 2 * 3 * 2 and max(computed) == linear_torch.CHUNK
    computed.clear()
    monkeypatch.setattr(linear_torch, "CHUNK", 2 * 3 * 5 * 16)  # two images
    agent_attention(q, k, v, agents)
    assert len(computed) == 2 and max(computed) == linear_torch.CHUNK


@pytest.mark.parametrize("op", [focused_linear_attention, inline_attention])
def test_memory_grows_with_the_tokens_not_with_their_square(op):
    q, k, v = (torch.randn(1, 3000, 1, 8) for _ in range(3))
    largest = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            largest.extend([out.numel()] if isinstance(out, torch.Tensor) else [])
            return out

    with Watch():
        op(q, k, v)
    assert max(largest) <= q.numel()


def test_features_near_zero_do_not_underflow():
    """Tokens that are negative everywhere leave only eps, whose powers are below what float32 holds."""
    q, k, v = (-torch.rand(1, 6, 2, 4) - 0.1 for _ in range(3))
    for power in (3, 8):
        out = focused_linear_attention(q, k, v, power=power)
        exact = focused_linear_attention(q.double(), k.double(), v.double(), power=power)
        assert torch.allclose(out.double(), exact, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_accumulates_in_float32(dtype):
    q, k, v = tokens((16, 16), (16, 16), dtype=torch.float32)
    shifted = k.detach() + 100  # InLine's weights do not depend on what all keys share
    for op, keys in ((focused_linear_attention, k), (inline_attention, k), (inline_attention, shifted)):
        low = [t.detach().to(dtype) for t in (q, keys, v)]
        out, exact = op(*low), op(*(t.double() for t in low))
        assert out.dtype == dtype
        assert (out.double() - exact).abs().max() <= 4 * torch.finfo(dtype).eps * exact.abs().max()


QUERIES = torch.randn(2, 3, 4, 2, 4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": torch.randn(2, 3, 2)}, TypeError, "q torch.float32"),
        ({"q": QUERIES[0, 0]}, ValueError, r"q has shape \(4, 2, 4\); it must be \(B, \*spatial, heads, channels\)"),
        ({"q": QUERIES[..., :3]}, ValueError, "must agree in batch, heads and head_dim"),
        ({"v": QUERIES[:, :2]}, ValueError, r"v has shape \(2, 2, 4, 2, 4\); it must be like k"),
        ({"agents": QUERIES[:, 0, :, :, :3]}, ValueError, r"agents has shape \(2, 4, 2, 3\)"),
        ({"agents": QUERIES[:, 0, :0]}, ValueError, "with A > 0"),
        ({"key_bias": torch.randn(2, 3, 5)}, ValueError, r"key_bias has shape \(2, 3, 5\); it must be \(2, 3, 10\)"),
        ({"query_bias": torch.randn(2, 3, 12)}, ValueError, r"query_bias has shape .* it must be \(2, 12, 3\)"),
    ],
    ids=["dtype", "axes", "head_dim", "values", "agents' channels", "no agents", "key_bias", "query_bias"],
)
def test_wrong_arguments_are_named(change, error, message):
    q, k, v = tokens()
    with pytest.raises(error, match=message):
        agent_attention(**{"q": q, "k": k, "v": v, "agents": agents_of(q, k)[0], **change})


def test_wrong_arguments_of_the_others_are_named():
    q, k, v = tokens()
    for kwargs, message in (({"power": 0}, "power=0 must be positive"), ({"eps": -1.0}, "eps=-1.0 must be positive")):
        with pytest.raises(ValueError, match=message):
            focused_linear_attention(q, k, v, **kwargs)
    with pytest.raises(ValueError, match=r"temperature has shape \(4, 2\); it must be \(2, 4\)"):
        focused_linear_attention(q, k, v, temperature=torch.ones(4, 2))
    for op in (focused_linear_attention, inline_attention):
        with pytest.raises(TypeError, match="q, k, v must share one floating-point dtype"):
            op(q, k, v.float())
        with pytest.raises(ValueError, match="must agree in batch"):
            op(q[:1], k, v)


def test_backends_that_lack_the_ops_are_passed_over_unless_asked_for():
    q, k, v = tokens(dtype=torch.float32)
    calls = [(agent_attention, agents_of(q, k)[:1]), (focused_linear_attention, ()), (inline_attention, ())]
    for op, more in calls:
        assert explain(op, q, k, v, *more).startswith("torch")
        with use_backend("triton"), pytest.raises(RuntimeError, match=f"it has no {op.__name__}"):
            op(q, k, v, *more)
