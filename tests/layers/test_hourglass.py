# SPDX-License-Identifier: Apache-2.0
"""Residual attention: pooling as Caffe has it, masks of maps of any size, modules that can leave things as they are."""

import pytest
import torch

import visionattn
from visionattn.layers.hourglass import AttentionModule, HourglassMask, pool_down


def drawn(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.double().eval()


@pytest.mark.parametrize("size", [(7, 8), (2, 5), (1, 3), (1, 1)])
def test_pooling_begins_on_the_map_and_may_end_beyond_it(size):
    x = torch.randn(2, 3, *size) - 5  # zeros beyond the border would show
    height, width = (max(side // 2, 1) for side in size)
    out = pool_down(x)
    assert out.shape == (2, 3, height, width)
    for i in range(height):
        for j in range(width):
            assert torch.equal(out[:, :, i, j], x[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].amax((2, 3)))


@pytest.mark.parametrize("unit", ["pre_activation", "grouped"])
@pytest.mark.parametrize("pools", [1, 2, 3])
def test_masks_weigh_maps_of_any_size(unit, pools):
    mask = drawn(HourglassMask(8, pools, unit, groups=2))
    for size in ((9, 14), (3, 2), (1, 1)):
        weights = mask(torch.randn(2, 8, *size, dtype=torch.float64))
        assert weights.shape == (2, 8, *size) and ((weights > 0) & (weights < 1)).all()


def test_a_module_is_its_trunk_weighed_by_one_plus_the_mask():
    module = drawn(AttentionModule(8, 2))
    x, active = (torch.randn(1, 8, 6, 5, dtype=torch.float64) for _ in range(2))
    seen = module.trunk[0](x, active)
    trunk = module.trunk[2](module.trunk[1](seen))
    assert torch.allclose(module(x, active), module.unit((1 + module.mask(seen)) * trunk))
    module.mask.conv2.weight.data.zero_()
    assert torch.allclose(module(x, active), module.unit(1.5 * trunk))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"depths": (1, 1, 1)}, r"depths=\(1, 1, 1\) must have 4 entries of at least 1"),
        ({"depths": (1, 0, 1, 1)}, r"depths=\(1, 0, 1, 1\) must have 4 entries of at least 1"),
        ({"unit": "preactivation"}, "unknown unit 'preactivation'; did you mean pre_activation"),
    ],
)
def test_wrong_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        visionattn.create_model("va_attention56", **kwargs)
    with pytest.raises(ValueError, match="pools=0 must be at least 1"):
        HourglassMask(8, 0)
