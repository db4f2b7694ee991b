# SPDX-License-Identifier: Apache-2.0
"""Mixture of heads: the routers' weights by definition, heads that are left out, the loss that spreads the choice."""

import pytest
import torch

import visionattn
from visionattn.layers import HeadRouter, MoHCosineGlobalAttention, create_mixer, head_routing, watch_imbalance
from visionattn.models import FAMILIES
from visionattn.models.moh import moh

MIXERS = {"moh_aggregated": {"reduction": 3, "pretrained_size": 6}, "moh_cosine_global": {"pretrained_size": (6, 5)}}


def redrawn(layer):
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer.eval()


@pytest.mark.parametrize(("shared", "top_k"), [(5, 0), (2, 2), (1, 3), (0, 2), (3, 1), (None, None)])
def test_weights_are_the_definitions(shared, top_k):
    router = redrawn(HeadRouter(6, 5, shared, top_k).double())
    shared, top_k = router.shared_heads, router.top_k
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    weights, probabilities = router(x)
    for b in range(2):
        for i in range(3):
            always = torch.ones(shared) if shared < 2 else (router.shared.weight @ x[b, i]).softmax(0) * shared
            if not top_k:
                assert torch.allclose(weights[b, i], always)
                continue
            g = (router.routed.weight @ x[b, i]).softmax(0)
            kept = g * (g >= g.sort().values[-top_k])
            kept = kept / kept.sum() * top_k
            pair = (router.groups.weight @ x[b, i]).softmax(0) * 2 if shared else torch.ones(2)
            assert torch.allclose(weights[b, i], torch.cat([always * pair[0], kept * pair[1]]).double())
            assert torch.allclose(probabilities[b, i], g)
    assert probabilities is None or int((weights[0, 0] > 0).sum()) == shared + top_k


def test_an_even_choice_costs_top_k():
    router = HeadRouter(4, 6, 2, 2)
    even = torch.tensor([[0.4, 0.4, 0.1, 0.1], [0.1, 0.1, 0.4, 0.4]])
    assert torch.allclose(router.imbalance(even), torch.tensor(2.0))
    assert router.imbalance(even[:1]) > 2.5
    gradient = torch.autograd.functional.jacobian(router.imbalance, even)
    assert torch.allclose(gradient, torch.tensor(16 / 4 * 0.5 / 2).expand(2, 4))  # the mask is a constant


@pytest.mark.parametrize("shared", [0, 1, 3])
def test_leaving_heads_out_changes_nothing(shared, monkeypatch):
    layer = redrawn(MoHCosineGlobalAttention(24, 6, shared, 2, pretrained_size=5))
    x = torch.randn(2, 13, 12, 24)
    calls = []
    real = head_routing.selected_attention
    monkeypatch.setattr(head_routing, "selected_attention", lambda *a, **k: calls.append(a) or real(*a, **k))
    expected = layer(x)  # gradients are wanted: all heads
    assert not calls
    with torch.no_grad():
        assert torch.allclose(layer(x), expected, atol=1e-5)
        assert len(calls) == 1 and calls[0][0].shape[2] == 6 - shared
        layer(x[:, :5])  # too small to be worth it
    assert len(calls) == 1


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (3, 11), (13, 12)], ids=str)
@pytest.mark.parametrize("name", MIXERS)
def test_mixers_take_maps_of_any_size(name, size):
    layer = redrawn(create_mixer(name, 12, 3, **MIXERS[name]))
    x = torch.randn(2, *size, 12, requires_grad=True)
    out = layer(x)
    out.square().sum().backward()
    assert out.shape == x.shape and torch.isfinite(out).all() and torch.isfinite(x.grad).all()
    assert torch.allclose(layer(x[1:]), out[1:], atol=1e-5)  # images do not mix


@pytest.mark.parametrize("name", MIXERS)
def test_mixers_work_in_bfloat16(name):
    layer = redrawn(create_mixer(name, 12, 3, **MIXERS[name], top_k=2))
    x = torch.randn(2, 12, 13, 12)
    with torch.no_grad():
        expected = layer(x)
        out = layer.to(torch.bfloat16)(x.bfloat16())
    assert out.dtype == torch.bfloat16 and (out - expected).norm() < 0.05 * expected.norm()


@pytest.mark.slow
def test_left_out_heads_survive_export():
    free = dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)
    layer = redrawn(MoHCosineGlobalAttention(24, 6, 1, 2, pretrained_size=5))
    with torch.no_grad():
        exported = torch.export.export(layer, (torch.randn(2, 14, 13, 24),), dynamic_shapes=(free,)).module()
        for shape in ((1, 14, 13), (3, 5, 7)):
            x = torch.randn(*shape, 24)
            assert torch.allclose(exported(x), layer(x), atol=1e-5)


def test_every_router_is_watched_with_and_without_checkpointing():
    args = {**FAMILIES["moh"].micros["va_moh_vit_small_75"], "drop_path_rate": 0.0}
    model = visionattn.create_model("va_moh_vit_small_75", **args).train()
    x, found = torch.randn(2, 3, 64, 64), []
    for saves in (False, True):
        model.set_grad_checkpointing(saves)
        model.zero_grad()
        with watch_imbalance(model) as imbalances:
            logits = model(x)
        (logits.sum() + torch.stack(imbalances).mean()).backward()
        found.append((imbalances, [p.grad for p in model.parameters()]))
    assert len(found[0][0]) == 3
    assert all(torch.allclose(a, b, atol=1e-5) for n in (0, 1) for a, b in zip(found[0][n], found[1][n], strict=True))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: HeadRouter(8, 4, 5, 0), "shared_heads=5 must be from 0 to num_heads=4"),
        (lambda: HeadRouter(8, 4, 2, 0), "top_k=0 must be from 1 to 2"),
        (lambda: HeadRouter(8, 4, 2, 3), "top_k=3 must be from 1 to 2"),
        (lambda: HeadRouter(8, 4, 4, 1), "top_k=1 must be from 0 to 0"),
        (lambda: moh(shared_heads=(3,)), r"shared_heads=\(3,\) must have one entry for each of the 4 stages"),
        (lambda: moh(top_k=(0, 0)), r"top_k=\(0, 0\) must have one entry"),
        (lambda: moh(img_size=0), "img_size=0 and pretrain_size=None must be positive"),
    ],
)
def test_wrong_arguments_are_named(build, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build()
