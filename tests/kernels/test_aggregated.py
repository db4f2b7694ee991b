# SPDX-License-Identifier: Apache-2.0
"""Aggregated attention against its definition, pixel by pixel; its gradients, its memory, its errors."""

import pytest
import torch

from visionattn.kernels import aggregated_attention, aggregated_torch, explain, use_backend


def call(height=3, width=5, pooled=2, window=3, dtype=torch.float64, batch=2):
    """Arguments of a call; queries are strided views of a packed map."""
    q, token_q = torch.randn(batch, height, width, 2, 2, 4, dtype=dtype).unbind(3)
    shapes = {
        "k": (batch, height, width, 2, 4),
        "v": (batch, height, width, 2, 3),
        "k_pool": (batch, pooled, 2, 4),
        "v_pool": (batch, pooled, 2, 3),
        "bias": (2, window**2),
        "pool_bias": (2, height, width, pooled),
        "tokens": (2, 4, window**2),
        "token_bias": (2, window**2),
    }
    drawn = {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}
    return {name: x.requires_grad_() for name, x in {"q": q, "token_q": token_q, **drawn}.items()}


def defined(x, window):
    """Every query by itself."""
    batch, height, width, heads, _ = x["q"].shape
    out = x["q"].new_zeros(batch, height, width, heads, x["v"].shape[-1])
    places = [(b, i, j, h) for b in range(batch) for i in range(height) for j in range(width) for h in range(heads)]
    for b, i, j, h in places:
        q, logits, extra, values = x["q"][b, i, j, h], [], [], []
        for position in range(window**2):
            y, z = i + position // window - window // 2, j + position % window - window // 2
            if 0 <= y < height and 0 <= z < width:
                logits.append(q @ x["k"][b, y, z, h] + x["bias"][h, position])
                extra.append(x["token_q"][b, i, j, h] @ x["tokens"][h, :, position] + x["token_bias"][h, position])
                values.append(x["v"][b, y, z, h])
        for n in range(x["k_pool"].shape[1]):
            logits.append(q @ x["k_pool"][b, n, h] + x["pool_bias"][h, i, j, n])
            extra.append(q.new_zeros(()))
            values.append(x["v_pool"][b, n, h])
        out[b, i, j, h] = (torch.stack(logits).softmax(0) + torch.stack(extra)) @ torch.stack(values)
    return out


@pytest.mark.parametrize("chunk", [1 << 22, 500, 1], ids=["one chunk", "an image", "a row"])
@pytest.mark.parametrize("case", [{}, {"window": 5, "pooled": 1}, {"height": 1, "window": 1}], ids=str)
def test_pixels_see_their_window_and_the_pooled_map(case, chunk, monkeypatch):
    monkeypatch.setattr(aggregated_torch, "CHUNK", chunk)
    window, x = case.get("window", 3), call(**case)
    out, expected = aggregated_attention(window_size=window, **x), defined(x, window)
    cotangent = torch.randn_like(out)
    grads, defined_grads = (torch.autograd.grad(o, list(x.values()), cotangent) for o in (out, expected))
    assert torch.allclose(out, expected)
    assert all(torch.allclose(a, b) for a, b in zip(grads, defined_grads, strict=True))


def test_second_derivatives_are_right():
    x = call(2, 2, 1, batch=1)
    run = lambda *tensors: aggregated_attention(**dict(zip(x, tensors, strict=True)))  # noqa: E731
    assert torch.autograd.gradcheck(run, tuple(x.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, tuple(x.values()), fast_mode=True)


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_no_more_logits_than_a_chunk_exist(rows, monkeypatch):
    x = call(4, 6, 3, dtype=torch.float32)
    monkeypatch.setattr(aggregated_torch, "CHUNK", rows * 2 * 6 * (9 + 3))
    made = []
    compute = aggregated_torch.attention_weights
    monkeypatch.setattr(aggregated_torch, "attention_weights", lambda *a: made.append(compute(*a)) or made[-1])
    aggregated_attention(**x).sum().backward()
    assert len(made) == 2 * 8 // rows and {w.numel() for w in made} == {aggregated_torch.CHUNK}


def test_no_copies_of_keys_are_made_for_the_queries():
    padded = torch.randn(2, 3, 6, 8, 4)
    views = list(aggregated_torch.shifted(padded, 4, 6, 3))
    assert len(views) == 9 and {v.shape for v in views} == {(2, 3, 4, 6, 4)}
    assert {v.untyped_storage().data_ptr() for v in views} == {padded.untyped_storage().data_ptr()}


def test_half_precision_gradients_are_summed_in_float32(monkeypatch):
    x = {name: torch.zeros_like(t, dtype=torch.bfloat16) for name, t in call(16, 8, 1, window=1, batch=1).items()}
    x = {name: t.requires_grad_() for name, t in x.items()}
    monkeypatch.setattr(aggregated_torch, "CHUNK", 1)  # 16 chunks
    aggregated_attention(window_size=1, **x).mul(1.0078125).sum().backward()
    # Half of each of 128 queries: summands that bfloat16 would round.
    assert torch.allclose(x["v_pool"].grad.float(), torch.tensor(64.5), atol=0.25)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"window_size": 2}, ValueError, "window_size=2 must be odd and positive"),
        ({"q": torch.randn(2, 3, 5, 8, dtype=torch.float64)}, ValueError, r"it must be \(B, H, W, heads, head_dim\)"),
        ({"k": torch.randn(2, 3, 4, 2, 4, dtype=torch.float64)}, ValueError, "k has shape"),
        ({"k_pool": torch.randn(2, 0, 2, 4, dtype=torch.float64)}, ValueError, "k_pool has shape .* n > 0"),
        ({"v_pool": torch.randn(2, 2, 2, 4, dtype=torch.float64)}, ValueError, "v_pool has shape"),
        ({"bias": torch.randn(2, 4, dtype=torch.float64)}, ValueError, r"bias has shape .* it must be \(2, 9\)"),
        ({"pool_bias": torch.randn(2, 15, 2, dtype=torch.float64)}, ValueError, "pool_bias has shape"),
        ({"tokens": torch.randn(2, 9, 4, dtype=torch.float64)}, ValueError, "tokens has shape"),
        ({"v": torch.randn(2, 3, 5, 2, 3)}, TypeError, "v is torch.float32.*must share one floating-point dtype"),
    ],
    ids=["window", "query", "keys", "no pool", "pool", "bias", "pool bias", "tokens", "dtypes"],
)
def test_wrong_arguments_are_named(change, error, message):
    with pytest.raises(error, match=message):
        aggregated_attention(**{**call(), **change})


def test_backends_that_lack_the_op_are_passed_over_unless_asked_for():
    x = call(dtype=torch.float32)
    assert explain(aggregated_attention, **x).startswith("torch (not triton: it has no aggregated_attention")
    with use_backend("triton"), pytest.raises(RuntimeError, match="it has no aggregated_attention"):
        aggregated_attention(**x)
