# SPDX-License-Identifier: Apache-2.0
"""Flow attention as a mixer of maps and tokens, and where its network has factors."""

import pytest
import timm
import torch

from visionattn.kernels import flow_attention
from visionattn.layers import FlowAttention, create_mixer


def drawn(*args, **kwargs):
    layer = create_mixer("flow", *args, **kwargs).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return layer


@pytest.mark.parametrize("size", [(7, 11), (1, 6), (1, 1)], ids=str)
def test_every_pixel_of_a_map_of_any_size_meets_every_other(size):
    layer, x = drawn(12, 3), torch.randn(2, *size, 12, dtype=torch.float64)
    out = layer(x)
    q, k, v = layer.qkv(x).flatten(1, 2).unflatten(2, (3, 3, 4)).unbind(2)
    expected = layer.proj(flow_attention(q, k, v, flow_eps=1e-6).flatten(2))
    assert torch.allclose(out.flatten(1, 2), expected)
    assert torch.allclose(layer(x.flatten(1, 2), size), expected)
    order = torch.randperm(size[0] * size[1])  # positions play no part
    assert torch.allclose(layer(x.flatten(1, 2)[:, order]), expected[:, order])


def test_half_precision_and_autocast_stay_close():
    layer, x = drawn(12, 2).float(), torch.randn(2, 9, 7, 12)
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(x)
    half = layer.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    for out in (mixed, half):
        assert (out.float() - exact).norm() <= 0.05 * exact.norm()


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="num_heads=5 must be a positive divisor of dim=12"):
        FlowAttention(12, 5)
    with pytest.raises(ValueError, match="eps=-1 must not be negative"):
        FlowAttention(12, 2, eps=-1)


def test_only_mlps_have_layer_scale_and_the_table_fits_any_image():
    args = dict(depths=(1, 1), dims=(16, 24), num_heads=4, img_size=32, num_classes=3)
    model = timm.create_model("va_flowformer", layer_scale=0.1, **args)
    factors = [name for name, _ in model.named_parameters() if name.endswith("gamma")]
    assert factors == [f"stages.{i}.blocks.0.scale2.gamma" for i in range(2)]
    assert model.pos_embed.table.shape == (16, 8, 8)
    assert model(torch.randn(2, 3, 41, 30)).shape == (2, 3)
    other = timm.create_model("va_flowformer", mixers="global", mixer_args={"map_size": 8}, **args)
    assert other(torch.randn(1, 3, 32, 32)).shape == (1, 3)
