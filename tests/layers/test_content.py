# SPDX-License-Identifier: Apache-2.0
"""Content attention as a mixer and as a part of blocks."""

import pytest
import torch
from torch import nn

from visionattn.kernels import clustered_attention
from visionattn.layers import BilateralBlock, ContentAttention, create_mixer, splits_for


def redrawn(layer):
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.4)
    return layer.double().eval()


@pytest.mark.parametrize(("size", "splits"), [((1, 1), 0), ((7, 13), 0), ((14, 7), 1), ((14, 14), 2), ((56, 56), 6)])
def test_splits_leave_clusters_of_a_window(size, splits):
    assert splits_for(*size) == splits


def test_values_are_convolved_and_added():
    layer = redrawn(ContentAttention(12, 3, num_splits=2, overlap=3))
    x = torch.randn(2, 5, 6, 12, dtype=torch.float64)
    q, k, v = layer.qkv(x).reshape(2, 30, 3, 3, 4).unbind(2)
    out = clustered_attention(q, k, v, 2, overlap=3).reshape(x.shape)
    local = layer.lepe(v.reshape(2, 5, 6, 12).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert torch.allclose(layer(x), layer.proj(out + local))


def test_an_image_does_not_see_another_unless_asked_for():
    x = torch.randn(2, 4, 5, 12, dtype=torch.float64)
    layer = redrawn(ContentAttention(12, 3))
    assert torch.allclose(layer(x)[:1], layer(x[:1]))
    layer.pair_images = True
    assert not torch.allclose(layer(x)[:1], layer(torch.stack([x[0], -x[1]]))[:1])
    with pytest.raises(ValueError, match="pair_images=True needs an even number"):
        layer(x[:1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite(dtype):
    layer = redrawn(ContentAttention(12, 3, num_splits=2)).to(dtype)
    out = layer(torch.randn(2, 7, 9, 12, dtype=dtype))
    assert out.dtype == dtype and torch.isfinite(out).all()


def test_the_second_mixer_has_its_own_skip_and_drops_as_asked():
    x = torch.randn(4, 5, 6, 12, dtype=torch.float64)

    def content(dim, proj_drop):
        return ContentAttention(dim, 3, 1, proj_drop=proj_drop)

    block = redrawn(BilateralBlock(12, create_mixer("identity", 12, 1), drop_path=0.5, content=content))
    middle = x + block.norm1(x)
    middle = middle + block.content(block.norm3(middle))
    assert torch.allclose(block(x), middle + block.mlp(block.norm2(middle)))
    block = redrawn(BilateralBlock(12, None, drop_path=0.99, content=content, drop_content=False)).train()
    block.mlp = None
    assert torch.allclose(block(x), x + block.content(block.norm3(x)))
    block.drop_content = True
    assert not torch.allclose(block(x), x + block.content(block.norm3(x)))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"num_splits": -1}, "num_splits=-1 and overlap=20 must not be negative"),
        ({"overlap": -1}, "overlap=-1 must not be negative"),
        ({"num_heads": 5}, "num_heads=5 must be a positive divisor of dim=12"),
    ],
)
def test_bad_arguments_are_named(args, message):
    with pytest.raises(ValueError, match=message):
        create_mixer("content", 12, **{"num_heads": 3, **args})


def test_blocks_that_norm_sums_have_no_second_mixer():
    with pytest.raises(ValueError, match="post_norm and norm_sums must be False"):
        BilateralBlock(12, None, norm_sums=True, content=lambda dim, proj_drop: nn.Identity())
