# SPDX-License-Identifier: Apache-2.0
"""Indexed attention against its definition, query by query; its gradients, its memory, its errors."""

import pytest
import torch

from visionattn.kernels import explain, indexed, indexed_attention


def call(dtype=torch.float64, tokens=5, keys=6, seen=3):
    """Arguments of a call: strided queries, and lists that name keys twice now and then."""
    q = torch.randn(2, tokens, 2, 3, 4, dtype=dtype)[:, :, 1].requires_grad_()
    k, v = (torch.randn(2, keys, 3, d, dtype=dtype).requires_grad_() for d in (4, 5))
    return q, k, v, torch.randint(keys, (2, tokens, 3, seen))


def defined(q, k, v, keys, scale):
    out = v.new_zeros(*q.shape[:3], v.shape[-1])
    for b, i, h in [(b, i, h) for b in range(q.shape[0]) for i in range(q.shape[1]) for h in range(q.shape[2])]:
        chosen = keys[b, i, h]
        out[b, i, h] = (k[b, chosen, h] @ q[b, i, h] * scale).softmax(0) @ v[b, chosen, h]
    return out


@pytest.fixture(params=[1 << 22, 1], ids=["one chunk", "a chunk a query"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(indexed, "CHUNK", request.param)


@pytest.mark.parametrize("scale", [None, 0.3])
def test_queries_see_the_keys_of_their_lists(scale, chunk):
    q, k, v, keys = call()
    out = indexed_attention(q, k, v, keys, scale=scale)
    expected = defined(q, k, v, keys, 0.5 if scale is None else scale)
    cotangent = torch.randn_like(out)
    found, wanted = (torch.autograd.grad(o, (q, k, v), cotangent) for o in (out, expected))
    assert torch.allclose(out, expected)
    assert all(torch.allclose(a, b) for a, b in zip(found, wanted, strict=True))


def test_gradients_are_right():
    q, k, v, keys = call(tokens=2, keys=3, seen=2)
    assert torch.autograd.gradcheck(lambda q, k, v: indexed_attention(q, k, v, keys), (q, k, v))


def test_no_more_is_gathered_than_a_chunk(monkeypatch):
    sizes = []
    einsum = torch.einsum
    monkeypatch.setattr(torch, "einsum", lambda eq, a, b: sizes.append(b.numel()) or einsum(eq, a, b))
    monkeypatch.setattr(indexed, "CHUNK", 2000)
    q, k, v, keys = call(tokens=40, keys=30)
    indexed_attention(q, k, v, keys)
    assert len(sizes) > 2 and max(sizes) <= 2000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_works_in_half_precision(dtype):
    q, k, v, keys = call(torch.float32)
    exact = indexed_attention(q, k, v, keys)
    out = indexed_attention(*(t.to(dtype) for t in (q, k, v)), keys)
    assert out.dtype == dtype and (out - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"v": torch.randn(2, 6, 3, 5)}, TypeError, "q, k and v are torch.float64, torch.float64 and torch.float32"),
        ({"keys": torch.zeros(2, 5, 3, 1)}, TypeError, "keys is torch.float32; it must be torch.int64"),
        ({"q": torch.randn(2, 5, 4).double()}, ValueError, r"q has shape \(2, 5, 4\); it must have 4 axes"),
        ({"k": torch.randn(2, 6, 2, 4).double()}, ValueError, r"k has shape \(2, 6, 2, 4\); it must be \(2, 6, 3, 4\)"),
        ({"keys": torch.zeros(2, 4, 3, 1).long()}, ValueError, r"keys has shape \(2, 4, 3, 1\); it must be \(2, 5, 3"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    q, k, v, keys = call()
    with pytest.raises(error, match=message):
        indexed_attention(**{"q": q, "k": k, "v": v, "keys": keys, **change})


def test_its_backend_is_explained():
    assert "torch" in explain(indexed_attention, *call())
