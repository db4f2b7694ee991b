# SPDX-License-Identifier: Apache-2.0
"""Sparsified attention: predictions by definition, parts and gathered keys equal to masks, tables of other sizes."""

import pytest
import torch

import visionattn
from visionattn.layers import ConvPatchStem, SparsifiedAttention, connectivity, create_mixer
from visionattn.models import FAMILIES
from visionattn.models.sparsifiner import best_tokens, sparsifiner


def redrawn(layer):
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer.eval()


def defined(layer, x):
    """Attention of tokens `(N, C)` that a class token leads, for a map as large as the tables."""
    q, k, v = (layer.qkv(x).unflatten(-1, (3, layer.num_heads, -1))).unbind(1)
    p, out = layer.predictor, torch.zeros_like(q)
    for h in range(layer.num_heads):
        low_q, low_k = p.q(q[:, h]), p.k(k[:, h])
        rows = (low_q @ (low_k.T @ p.down) / layer.num_heads**0.5).softmax(-1)
        for i in range(len(x)):
            logits = k[:, h] @ q[i, h] * layer.scale
            if i > 0:
                kept = rows[i] * (rows[i] >= rows[i].sort().values[-p.top_coefficients])
                basis = torch.where(p.up.abs() > p.basis_threshold, p.up.abs(), 0.0)
                scores = basis @ kept
                logits[scores < scores.sort().values[-layer.budget(len(x))]] = -torch.inf
            out[i, h] = logits.softmax(-1) @ v[:, h]
    return layer.proj(out.flatten(1))


def sparsified(side=4, **kwargs):
    options = {"keep_rate": 0.3, "reduce_tokens": 2, "top_coefficients": 3, "basis_threshold": 0.05, **kwargs}
    return redrawn(SparsifiedAttention(16, 4, side, class_token=True, **options)).double()


def test_tokens_see_the_keys_that_are_predicted():
    layer = sparsified()
    x = torch.randn(2, 17, 16, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.stack([defined(layer, image) for image in x])
        assert torch.allclose(layer(x, (4, 4)), expected)


@pytest.mark.parametrize("gathered", [1, 10**6], ids=["gathered", "masked"])
@pytest.mark.parametrize("options", [{}, {"score_threshold": 0.2}], ids=str)
def test_parts_equal_the_whole(options, gathered, monkeypatch):
    layer = sparsified(**options)
    x = torch.randn(2, 17, 16, dtype=torch.float64)
    expected = layer(x, (4, 4))  # gradients are wanted: all at once
    calls = []
    real = connectivity.indexed_attention
    monkeypatch.setattr(connectivity, "indexed_attention", lambda *a, **k: calls.append(a[0].shape[1]) or real(*a, **k))
    monkeypatch.setattr(connectivity, "CHUNK", 500)
    monkeypatch.setattr(connectivity, "GATHERED", gathered)
    with torch.no_grad():
        assert torch.allclose(layer(x, (4, 4)), expected)
    assert calls == ([3] * 5 + [1] if gathered == 1 and not options else [])


def test_who_sees_nothing_gets_nothing():
    layer = sparsified(score_threshold=1e6)
    x = torch.randn(1, 17, 16, dtype=torch.float64, requires_grad=True)
    out = layer(x, (4, 4))
    assert torch.allclose(out[:, 1:], layer.proj.bias.expand(1, 16, 16)) and not torch.allclose(out[:, 0], out[:, 1])
    out.sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (3, 11), (5, 5)], ids=str)
def test_maps_of_any_size_are_mixed(size):
    layer = redrawn(create_mixer("sparsified", 12, 3, map_size=5))
    x = torch.randn(2, *size, 12, requires_grad=True)
    out = layer(x)
    out.square().sum().backward()
    assert out.shape == x.shape and torch.isfinite(out).all() and torch.isfinite(x.grad).all()
    assert torch.allclose(layer(x[1:]), out[1:], atol=1e-5)  # images do not mix


def test_the_choice_has_no_gradient_but_every_parameter_has_one():
    layer = sparsified()
    layer(torch.randn(2, 17, 16, dtype=torch.float64), (4, 4)).square().sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in layer.predictor.parameters())
    assert all(p.grad.any() for name, p in layer.named_parameters() if not name.startswith("predictor"))


def test_dropped_tokens_stay_dropped():
    model = redrawn(sparsifiner(32, 3, 2, img_size=64, keep_rates=0.5, token_keep_rates=(0.5, 0.25, None)))
    maps = model.forward_intermediates(torch.randn(2, 3, 64, 64), intermediates_only=True)
    kept = [m.ne(0).any(1).flatten(1) for m in maps]
    assert [k.sum(1).tolist() for k in kept] == [[8, 8], [4, 4], [4, 4]]
    assert (kept[0] >= kept[1]).all() and (kept[1] == kept[2]).all()
    attention = torch.tensor([[0.9, 0.1, 0.3, 0.2]])
    assert best_tokens(attention, None, 2).tolist() == [[True, False, True, True]]
    assert best_tokens(attention, torch.tensor([[True, True, False, True]]), 1).tolist() == [[True, False, False, True]]


def test_the_second_classifier_reads_every_token():
    args = FAMILIES["sparsifiner_lvvit"].micros["va_sparsifiner_lvvit_small"]
    model = redrawn(visionattn.create_model("va_sparsifiner_lvvit_small", num_classes=5, **args))
    tokens = model.forward_features(torch.randn(2, 3, 64, 64))
    expected = model.head.fc(tokens[:, 0]) + 0.5 * model.dense_head(tokens[:, 1:]).max(1).values
    assert torch.allclose(model.forward_head(tokens), expected)
    assert all(torch.allclose(block.scale1(tokens), tokens / 2) for block in model.blocks)


def test_weights_of_the_dense_model_load_without_a_predictor(tmp_path):
    args = FAMILIES["sparsifiner"].micros["va_sparsifiner_deit_small"]
    source, model = (visionattn.create_model("va_sparsifiner_deit_small", num_classes=5, **args) for _ in range(2))
    before = model.blocks[0].attn.predictor.up.clone()
    ours = {name: p for name, p in source.state_dict().items() if ".predictor." not in name}
    names = (("stem.", "patch_embed."), ("head.fc.", "head."), ("pos_embed.class_token", "cls_token"))
    dense = {}
    for name, p in ours.items():
        for old, new in (*names, ("pos_embed.table", "pos_embed")):
            name = name.replace(old, new) if name.startswith(old) else name
        dense[name] = p.reshape(1, 1, -1) if name == "cls_token" else p[None] if name == "pos_embed" else p
    torch.save(dense, tmp_path / "deit.pth")
    visionattn.load_checkpoint(model, tmp_path / "deit.pth")
    assert torch.equal(model.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)
    assert torch.equal(model.blocks[0].attn.predictor.up, before)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SparsifiedAttention(8, 3), "num_heads=3 must be a positive divisor of dim=8"),
        (lambda: SparsifiedAttention(8, 2, keep_rate=0), "keep_rate=0 must be above 0"),
        (lambda: SparsifiedAttention(8, 2, score_threshold=0), "score_threshold=0 must be positive"),
        (lambda: SparsifiedAttention(8, 2, reduce_tokens=0), "reduce_tokens=0 must be at least 1"),
        (lambda: SparsifiedAttention(8, 2, map_size=0), "map_size=0 must be at least 1"),
        (lambda: SparsifiedAttention(8, 2, basis_threshold=-1), "basis_threshold=-1"),
        (lambda: sparsifiner(depth=3, keep_rates=(0.5,)), r"keep_rates=\[0.5\] must have one entry for each of the 3"),
        (lambda: sparsifiner(depth=2, token_keep_rates=(0.5,)), r"token_keep_rates=\[0.5\] must give each of the 2"),
        (lambda: sparsifiner(img_size=0), "img_size=0 and patch_size=16 must be positive"),
        (lambda: ConvPatchStem(3, 8, 3), "patch_size=3 must be even"),
    ],
)
def test_wrong_arguments_are_named(build, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build()
