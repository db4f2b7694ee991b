# SPDX-License-Identifier: Apache-2.0
"""Selected attention against its definition, query by query; its gradients, its share of the work, its errors."""

import pytest
import torch
import torch.nn.functional as F

from visionattn.kernels import explain, selected_attention


def call(dtype=torch.float64, batch=2, tokens=5, keys=4, heads=3):
    """Arguments of a call: strided queries, and heads that few, all and none of the tokens chose."""
    q = torch.randn(batch, tokens, 2, heads, 4, dtype=dtype)[:, :, 1].requires_grad_()
    k, v = (torch.randn(batch, keys, heads, d, dtype=dtype).requires_grad_() for d in (4, 6))
    selected = torch.rand(batch, tokens, heads) < torch.tensor([0.4, 2.0, -1.0])
    return q, k, v, selected, torch.randn(heads, tokens, keys, dtype=dtype).requires_grad_()


def defined(q, k, v, selected, bias, scale):
    out = v.new_zeros(*q.shape[:3], v.shape[-1])
    for b, i, h in selected.nonzero().tolist():
        logits = (k[b, :, h] @ q[b, i, h]) * scale + bias[h, i]
        out[b, i, h] = logits.softmax(-1) @ v[b, :, h]
    return out


@pytest.mark.parametrize("scale", [None, 0.3])
def test_tokens_are_answered_by_the_heads_that_they_chose(scale):
    q, k, v, selected, bias = call()
    out = selected_attention(q, k, v, selected, scale=scale, bias=bias)
    expected = defined(q, k, v, selected, bias, 0.5 if scale is None else scale)
    assert torch.allclose(out, expected)
    cotangent = torch.randn_like(out)
    found, wanted = (torch.autograd.grad(o, (q, k, v, bias), cotangent) for o in (out, expected))
    assert all(torch.allclose(a, b) for a, b in zip(found, wanted, strict=True))


def test_gradients_are_right_without_a_bias():
    q, k, v, selected, _ = call(batch=1)
    assert torch.autograd.gradcheck(lambda q, k, v: selected_attention(q, k, v, selected), (q, k, v))


def test_nobody_chose_a_head():
    q, k, v, selected, bias = call()
    out = selected_attention(q, k, v, torch.zeros_like(selected), bias=bias)
    assert out.shape == (2, 5, 3, 6) and not out.any()


def test_only_chosen_queries_are_computed(monkeypatch):
    lengths = []
    fused = F.scaled_dot_product_attention

    def watched(q, *args, **kwargs):
        lengths.append(q.shape[2])
        return fused(q, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    q, k, v, selected, _ = call(tokens=50)
    selected[..., 1] = torch.arange(50) % 10 == 0
    selected_attention(q, k, v, selected)
    assert lengths == [int(selected.sum(1).max())]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_works_in_half_precision(dtype):
    q, k, v, selected, bias = call(torch.float32)
    exact = selected_attention(q, k, v, selected, bias=bias)
    out = selected_attention(*(t.to(dtype) for t in (q, k, v)), selected, bias=bias.to(dtype))
    assert out.dtype == dtype and (out - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": torch.randn(2, 4, 3, 4)}, TypeError, "q, k and v are torch.float64, torch.float32 and torch.float64"),
        ({"selected": torch.ones(2, 5, 3)}, TypeError, "selected is torch.float32; it must be torch.bool"),
        ({"q": torch.randn(2, 5, 4).double()}, ValueError, r"q has shape \(2, 5, 4\); it must be"),
        ({"k": torch.randn(2, 4, 2, 4).double()}, ValueError, r"k has shape \(2, 4, 2, 4\); it must be \(2, 4, 3, 4\)"),
        ({"selected": torch.ones(2, 5, 2, dtype=torch.bool)}, ValueError, r"selected has shape \(2, 5, 2\)"),
        ({"bias": torch.randn(3, 5, 5)}, ValueError, r"bias has shape \(3, 5, 5\); it must be \(3, 5, 4\)"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    q, k, v, selected, bias = call()
    given = {"q": q, "k": k, "v": v, "selected": selected, "bias": bias, **change}
    with pytest.raises(error, match=message):
        selected_attention(**given)


def test_its_backend_is_explained():
    q, k, v, selected, _ = call()
    assert "torch" in explain(selected_attention, q, k, v, selected)
