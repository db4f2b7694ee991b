# SPDX-License-Identifier: Apache-2.0
"""Clustered attention against its definition, list by list and query by query; its gradients, memory and errors."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from visionattn.kernels import clustered_attention, explain
from visionattn.kernels.clustered import balanced_order


def call(dtype=torch.float64, tokens=24, batch=2):
    """Queries, keys and values as views of one packed projection, values of another width."""
    packed = torch.randn(batch, tokens, 2, 3, 4, dtype=dtype)
    q, k = (t.detach().requires_grad_() for t in packed.unbind(2))
    return q, k, torch.randn(batch, tokens, 3, 5, dtype=dtype, requires_grad=True)


def unit(vector):
    return vector / vector.norm().clamp(min=1e-12)


def halves(features, tokens):
    """The two halves of a list of tokens, each in its order."""
    half = len(tokens) // 2
    parts = tokens[:half], tokens[half:]
    centres = [unit(sum(features[t] for t in part) / half) for part in parts]
    for _ in range(2):
        sums = [torch.zeros_like(features[0]), torch.zeros_like(features[0])]
        for t in tokens:
            likeness = [100 * float(unit(features[t]) @ c) for c in centres]
            first = 1 / (1 + math.exp(likeness[1] - likeness[0])) if likeness[1] - likeness[0] < 700 else 0.0
            sums = [sums[0] + first * features[t], sums[1] + (1 - first) * features[t]]
        centres = [unit(s) for s in sums]
    scores = {t: float((unit(features[t]) @ centres[0] + 1) / (unit(features[t]) @ centres[1] + 1)) for t in tokens}
    ranked = sorted(tokens, key=scores.get)
    return ranked[:half], ranked[half:]


def clusters_of(features, splits):
    lists = [list(range(len(features)))]
    for _ in range(splits):
        lists = [half for tokens in lists for half in halves(features, tokens)]
    return lists


def defined(q, k, v, splits, overlap, scale):
    out = torch.zeros_like(v)
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            clusters = clusters_of(list(q[b, :, h].detach()), splits)
            for number, own in enumerate(clusters):
                seen = list(own)
                if splits and overlap:
                    other = clusters[number ^ 1]
                    seen += other[-overlap:] if number % 2 else other[:overlap]
                for token in own:
                    weights = (k[b, seen, h] @ q[b, token, h] * scale).softmax(0)
                    out[b, token, h] = weights @ v[b, seen, h]
    return out


@pytest.mark.parametrize(("splits", "overlap"), [(0, 20), (1, 3), (2, 2), (3, 20), (2, 0)])
def test_queries_see_their_cluster_and_a_part_of_its_sibling(splits, overlap):
    q, k, v = call()
    out = clustered_attention(q, k, v, splits, overlap=overlap, scale=0.7)
    expected = defined(q, k, v, splits, overlap, 0.7)
    cotangent = torch.randn_like(out)
    found, wanted = (torch.autograd.grad(o, (q, k, v), cotangent) for o in (out, expected))
    assert torch.allclose(out, expected)
    assert all(torch.allclose(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("tokens", [1, 5, 13, 23])
def test_every_token_has_one_place_where_clusters_do_not_divide_them(tokens):
    q, k, v = call(tokens=tokens)
    out = clustered_attention(q, k, v, 3)
    assert torch.isfinite(out).all()
    # Of equal values every average is the value: nothing of what was filled up is seen.
    constant = torch.randn(1, 1, 3, 5, dtype=v.dtype).expand_as(v)
    assert torch.allclose(clustered_attention(q, k, constant, 3), constant)
    filled = torch.nn.functional.pad(q.transpose(1, 2), (0, 0, 0, -tokens % 8))
    order = balanced_order(filled, 3, tokens)
    assert torch.equal(order.sort(-1).values, torch.arange(order.shape[-1]).expand_as(order))
    assert (order[..., tokens:] >= tokens).all()


def test_images_are_paired_if_asked_for():
    q, k, v = call(tokens=9, batch=4)
    out = clustered_attention(q, k, v, 0, overlap=4, pair_images=True)
    for b in range(4):
        other = slice(None, 4) if b % 2 == 0 else slice(-4, None)
        keys, values = (torch.cat([t[b], t[b ^ 1, other]]) for t in (k, v))
        logits = torch.einsum("nhd,mhd->hnm", q[b], keys) * 0.5
        assert torch.allclose(out[b], torch.einsum("hnm,mhd->nhd", logits.softmax(-1), values))
    with pytest.raises(ValueError, match="even number of images; q has 3"):
        clustered_attention(q[:3], k[:3], v[:3], 0, pair_images=True)
    assert torch.equal(clustered_attention(q, k, v, 1, pair_images=True), clustered_attention(q, k, v, 1))


def test_gradients_are_right():
    q, k, v = call(tokens=5, batch=1)
    assert torch.autograd.gradcheck(lambda q, k, v: clustered_attention(q, k, v, 1, overlap=2), (q, k, v))


def test_images_and_heads_are_sorted_by_themselves():
    q, k, v = call(batch=3)
    out = clustered_attention(q, k, v, 2)
    for b in range(3):
        assert torch.allclose(clustered_attention(q[b : b + 1], k[b : b + 1], v[b : b + 1], 2), out[b : b + 1])
    assert torch.allclose(clustered_attention(*(t[:, :, 1:2] for t in (q, k, v)), 2), out[:, :, 1:2])


class Largest(TorchDispatchMode):
    """Notes how many elements the largest result has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def test_nothing_as_large_as_all_pairs_is_made():
    q, k, v = (torch.randn(1, 1024, 1, 8) for _ in range(3))
    with Largest() as largest, torch.no_grad():
        clustered_attention(q, k, v, 5)
    assert largest.elements <= 1024 * (32 + 20) * 2 < 1024**2 / 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [24, 21])
def test_works_in_half_precision(dtype, tokens):
    q, k, v = (t.detach().to(dtype) for t in call(torch.float32, tokens))
    exact = clustered_attention(q.float(), k.float(), v.float(), 2)  # of the same queries, so that none moves
    out = clustered_attention(q, k, v, 2)
    assert out.dtype == dtype
    assert torch.allclose(out.float(), exact, atol=0.03)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": torch.randn(2, 4, 3)}, ValueError, r"q has shape \(2, 4, 3\); it must have 4 axes"),
        ({"k": torch.randn(2, 25, 3, 4)}, ValueError, r"k has shape \(2, 25, 3, 4\).* must fit q, \(2, 24, 3, 4\)"),
        ({"v": torch.randn(2, 24, 1, 4)}, ValueError, r"v \(2, 24, 1, 4\); they must fit q"),
        ({"v": torch.randn(2, 24, 3, 4).double()}, TypeError, "must share one floating-point dtype"),
        ({"num_splits": -1}, ValueError, "num_splits=-1 and overlap=20 must not be negative"),
        ({"overlap": -2}, ValueError, "overlap=-2 must not be negative"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_named(change, error, message):
    q, k, v = (torch.randn(2, 24, 3, 4) for _ in range(3))
    with pytest.raises(error, match=message):
        clustered_attention(**{"q": q, "k": k, "v": v, "num_splits": 2, **change})


def test_explain_names_the_backend():
    assert "torch" in explain(clustered_attention, *call(), 2)
