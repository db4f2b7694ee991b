# SPDX-License-Identifier: Apache-2.0
"""Gramian tokens against their definition, and the head that sums their logits."""

import pytest
import torch
from torch.nn import functional as F

import visionattn
from visionattn.layers import GramianHead, GramianToken
from visionattn.layers.gramian import ClassAttention, GroupedMlp, upper_triangle
from visionattn.models._gramian import ga_cswin

MICRO = {"depths": (1, 1, 4, 1), "dims": (8, 16, 24, 32), "gram_dim": 16, "branches": 2, "inner_maps": 1}


def head(**kwargs):
    def token(dim):
        return GramianToken(dim, gram_dim=6, attn_dim=8, num_heads=2, embedding_groups=3, mlp_groups=4)

    return GramianHead(12, 5, "gram", 0.0, token=token, branches=3, **kwargs).double().eval()


@pytest.mark.parametrize("side", [1, 2, 7])
def test_the_upper_triangle_is_read_row_by_row(side):
    rows, columns = torch.triu_indices(side, side)
    assert torch.equal(upper_triangle(side, torch.device("cpu")), rows * side + columns)


def test_a_gram_vector_holds_the_channels_products():
    token = head().tokens[0]
    x = torch.randn(2, 3, 4, 12, dtype=torch.float64)
    channels = token.contraction(x.permute(0, 3, 1, 2)).flatten(2)
    products = torch.stack([(channels[:, i] * channels[:, j]).sum(-1) for i in range(6) for j in range(i, 6)], 1)
    assert torch.allclose(token.gram_vector(x), products / products.norm(dim=1, keepdim=True), rtol=1e-12)


def test_the_class_token_alone_is_updated():
    layer = ClassAttention(12, 3, 6).double()
    tokens = torch.randn(2, 5, 12, dtype=torch.float64)
    expected = []
    for image in tokens:
        q, k, v = layer.q(image[0]).view(3, 2), layer.k(image).view(5, 3, 2), layer.v(image).view(5, 3, 2)
        heads = [F.softmax(k[:, h] @ q[h] / 2**0.5, 0) @ v[:, h] for h in range(3)]
        expected.append(layer.proj(torch.cat(heads)))
    assert torch.allclose(layer(tokens), torch.stack(expected)[:, None], rtol=1e-12)


def test_groups_exchange_their_channels():
    mlp = GroupedMlp(4, 8, groups=2).double()
    x = torch.randn(1, 1, 1, 4, dtype=torch.float64)
    hidden = mlp.act(mlp.fc1(x.permute(0, 3, 1, 2))).flatten()
    shuffled = torch.stack([hidden[b * 2 + a] for a in range(2) for b in range(4)])  # 4 of each group of 2
    assert torch.allclose(mlp(x).flatten(), mlp.fc2(shuffled.view(1, 8, 1, 1)).flatten(), rtol=1e-12)


def test_logits_are_the_sum_of_the_branches():
    module = head()
    x = torch.randn(2, 3, 4, 12, dtype=torch.float64)
    branches = module.branch_logits(x)
    assert len(branches) == 3 and torch.allclose(module(x), sum(branches), rtol=1e-12)
    assert module(x, pre_logits=True).shape == (2, module.num_features) == (2, 36)


def test_pooling_takes_the_place_of_tokens():
    module = head()
    x = torch.randn(2, 3, 4, 12, dtype=torch.float64)
    module.reset(0, "avg")
    assert torch.equal(module(x), x.mean((1, 2)))
    with pytest.raises(ValueError, match="global_pool='avg'"):
        module.branch_logits(x)
    module.reset(0, "")
    assert torch.equal(module(x), x)
    with pytest.raises(ValueError, match="took away"):
        module.reset(5, "gram")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"depths": (1, 1, 4)}, "four entries"),
        ({"inner_maps": 4}, "inner_maps=4"),
        ({"embedding_groups": 7}, "embedding_groups=7"),
        ({"branches": 0}, "branches=0"),
        ({"global_pool": "token"}, "global_pool='token'"),
        ({"host": "resnet"}, "host='resnet'"),
    ],
)
def test_bad_arguments_are_named(args, message):
    with pytest.raises(ValueError, match=message):
        visionattn.create_model("va_ga_convnext_tiny_688", **{**MICRO, "attn_dim": 16, **args})


def test_cswin_hosts_take_any_size():
    args = {"stripe_widths": (1, 2, 3, 3, 3), "num_heads": (2, 2, 4, 4, 4), "gram_dim": 48, "num_classes": 7}
    model = ga_cswin((1, 1, 3, 1), (8, 16, 24, 32), inner_maps=1, branches=2, **args).eval()
    assert model(torch.randn(2, 3, 75, 61)).shape == (2, 7)


def test_branches_are_trained_apart():
    classifier_of = pytest.importorskip("visionattn.openmmlab.classifier")
    kwargs = {**MICRO, "attn_dim": 16, "drop_path_rate": 0.0}
    model = classifier_of.TimmClassifier(
        "va_ga_convnext_tiny_688", 5, kwargs, branch_weight=-0.8, binary=True, label_smoothing=0.1
    )
    images, label = torch.randn(3, 3, 64, 48), torch.tensor([4, 0, 2])
    losses = model.train().loss(images, label)
    branches = model.eval().model.train()(images)
    target = torch.full((3, 5), 0.02).scatter(1, label[:, None], 0.92)
    expected = [F.binary_cross_entropy_with_logits(logits, target) for logits in branches]
    assert losses["loss"].item() == pytest.approx(sum(expected).item(), rel=1e-4)
    mean = (sum(branches) / 2).softmax(1)
    apart = [(mean * (mean.log() - logits.log_softmax(1))).mean() for logits in branches]
    assert losses["loss_branches"].item() == pytest.approx(-0.8 * sum(apart).item(), rel=1e-3)
    assert model.eval()(images).shape == (3, 5)
    with pytest.raises(ValueError, match=r"branch_weight=-0\.8: va_nat_tiny has no such logits"):
        classifier_of.TimmClassifier("va_nat_tiny", 5, {"depths": (1, 1, 1, 1)}, branch_weight=-0.8)
