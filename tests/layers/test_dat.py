# SPDX-License-Identifier: Apache-2.0
"""The layers that look where they want to: points, any size of map, what a state dict tells, bad arguments."""

import pytest
import torch

from visionattn.layers import DeformableAttention, MultiScaleDeformableAttention, SlideAttention, create_mixer
from visionattn.layers.deformable import sampling_points


def fresh(layer):
    """Layer whose every parameter is drawn, so that none is idle at its initial value."""
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer


@pytest.mark.parametrize(
    ("convention", "expected"),
    [
        (
            {"grid": "centers", "offset_range": 2, "bound": None},
            lambda o, i, n: 2 * (i + 0.5 + o.tanh()) / n - 1,
        ),
        ({"grid": "centers", "bound": "tanh"}, lambda o, i, n: (2 * (i + 0.5) / n - 1 + o).tanh()),
        ({"grid": "centers", "bound": None}, lambda o, i, n: 2 * (i + 0.5) / n - 1 + o),
        ({}, lambda o, i, n: (2 * (i + 0.5) / (n - 1) - 1 + o).clamp(-1, 1)),
        ({"offset_range": 3, "bound": None}, lambda o, i, n: 2 * (i + 0.5) / (n - 1) - 1 + 3 * o.tanh() / (n - 1)),
    ],
    ids=["centers, limited", "centers, tanh", "centers, free", "corners, clamped", "corners, limited"],
)
def test_points_start_on_their_grid(convention, expected):
    offsets = torch.randn(2, 3, 4, 5, 2, dtype=torch.float64)
    points = sampling_points(offsets, **convention).view(2, 3, 4, 5, 2)
    for i, j in [(i, j) for i in range(4) for j in range(5)]:
        assert torch.allclose(points[:, :, i, j, 0], expected(offsets[:, :, i, j, 0], i, 4))
        assert torch.allclose(points[:, :, i, j, 1], expected(offsets[:, :, i, j, 1], j, 5))


def test_a_single_clamped_point_lies_on_the_border_as_the_reference_has_it():
    points = sampling_points(torch.randn(1, 1, 1, 3, 2))
    assert (points[..., 0] == 1).all() and points[..., 1].isfinite().all()
    assert sampling_points(torch.zeros(1, 1, 1, 1, 2), bound=None).tolist() == [[[[0, 0]]]]


OPTIONS = [{}, {"grid": "centers", "offset_range": 2, "bound": None}, {"position": "mlp"}, {"position": "dense"},
           {"position": "conv", "stride": 2}, {"sample": "mean", "stride": 2}, {"position": None},
           {"stride": 3, "kernel_size": 3, "pad_offsets": False}]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_maps_of_any_size_are_mixed(options, dtype):
    layer = fresh(create_mixer("deformable", 16, 4, num_groups=2, **{"map_size": 6, **options})).to(dtype)
    for size in [(7, 9), (6, 6), (1, 5), (1, 1)]:
        x = torch.randn(2, *size, 16, dtype=dtype, requires_grad=True)
        out = layer(x)
        out.sum().backward()
        assert out.shape == x.shape and out.dtype == dtype
        assert out.isfinite().all() and x.grad.isfinite().all()


def test_every_query_sees_the_same_few_points():
    layer = fresh(DeformableAttention(8, 2, stride=4, kernel_size=3, map_size=8))
    x = torch.randn(1, 8, 8, 8)
    q, k, v, points = layer.project_in(x)
    assert q.shape == (1, 8, 8, 2, 4) and k.shape == v.shape == (1, 4, 2, 4) and points.shape == (1, 1, 4, 2)
    assert layer.attention_macs(8, 8) == 2 * 64 * 4 * 8


def test_groups_move_apart():
    layer = fresh(DeformableAttention(8, 2, num_groups=2))
    points = layer.points(torch.randn(1, 5, 6, 8))
    assert points.shape == (1, 2, 30, 2) and not torch.allclose(points[:, 0], points[:, 1])


def test_means_leave_the_offset_network_idle():
    layer = DeformableAttention(8, 2, stride=2, sample="mean")
    frozen = {name for name, p in layer.named_parameters() if not p.requires_grad}
    assert frozen and all(name.startswith("offset_") for name in frozen)
    layer(torch.randn(1, 4, 4, 8)).sum().backward()
    assert {name for name, p in layer.named_parameters() if p.grad is None} == frozen


def test_a_state_dict_tells_the_grid():
    corners, centers = (DeformableAttention(8, 2, grid=grid) for grid in ("corners", "centers"))
    assert {n: p.shape for n, p in corners.named_parameters()} == {n: p.shape for n, p in centers.named_parameters()}
    with pytest.raises(RuntimeError, match="on_corners"):
        corners.load_state_dict(centers.state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3}, "num_heads=3 must be a positive divisor of dim=16"),
        ({"num_groups": 3}, "num_groups=3 must be a positive divisor of num_heads=4"),
        ({"stride": 0}, "stride=0, kernel_size=5 and map_size=14 must be positive"),
        ({"offset_range": -1}, "offset_range=-1 must not be negative"),
        ({"grid": "edges"}, "grid='edges' must be one of 'centers', 'corners'"),
        ({"bound": "wrap"}, "bound='wrap' must be one of 'clamp', 'tanh', None"),
        ({"position": "sine"}, "position='sine' must be one of"),
        ({"sample": "max"}, "sample='max' must be one of 'points', 'mean'"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DeformableAttention(**{"dim": 16, "num_heads": 4, **arguments})


def test_slide_attention_sees_its_moved_neighbours():
    layer = fresh(SlideAttention(16, 2)).double()
    x = torch.randn(2, 3, 4, 16, dtype=torch.float64)
    q, k, v = layer.project_in(x)
    out = torch.zeros_like(q)
    for b, i, j, n in torch.cartesian_prod(*map(torch.arange, (2, 3, 4, 2))).tolist():
        keys, values = [], []
        for tap in range(9):
            for source, found in ((k, keys), (v, values)):
                plane = torch.nn.functional.pad(source[b, :, :, n], (0, 0, 1, 1, 1, 1))  # zeros around the map
                window = plane[i : i + 3, j : j + 3]
                weight = layer.conv.weight.view(2, 9, 3, 3)[:, tap]
                moved = torch.einsum("yxc,cyx->c", window, weight) + window[tap // 3, tap % 3]
                found.append(moved + (layer.conv.bias + layer.shift_bias).view(2, 9)[:, tap])
        keys = torch.stack(keys) + layer.rpb[n].flatten()[:, None]
        out[b, i, j, n] = (keys @ q[b, i, j, n] * 8**-0.5).softmax(0) @ torch.stack(values)
    assert torch.allclose(layer(x), layer.project_out(out))
    with pytest.raises(ValueError, match="num_heads=3 must be a positive divisor of a quarter of dim=16"):
        SlideAttention(16, 3)


def test_new_multi_scale_layers_look_around_in_every_direction():
    layer = MultiScaleDeformableAttention(8, 4, 2, 3)
    offsets = layer.sampling_offsets(torch.randn(1, 8)).view(4, 2, 3, 2)
    assert torch.allclose(offsets[:, 0, 0], torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]]), atol=1e-6)
    assert torch.allclose(offsets[:, 1, 2], 3 * offsets[:, 0, 0])
    with pytest.raises(ValueError, match="its last axis must be 2 or 4"):
        layer(torch.randn(1, 5, 8), torch.rand(1, 5, 2, 3), torch.randn(1, 10, 8), [(2, 4), (1, 2)])
    with pytest.raises(ValueError, match="num_heads=3 must be a positive divisor of dim=8"):
        MultiScaleDeformableAttention(8, 3)
