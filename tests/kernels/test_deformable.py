# SPDX-License-Identifier: Apache-2.0
"""Deformable attention against its definitions, sample by sample; its gradients, its memory, its errors."""

import math

import pytest
import torch

from visionattn.kernels import (
    deformable_attention,
    deformable_torch,
    explain,
    ms_deform_attn,
    sample_points,
    use_backend,
)
from visionattn.kernels.bilinear import bilinear


def read(plane, y, x):
    """Value of a plane (H, W, ...) at a real-valued place: every corner by itself, zero beyond."""
    total = 0
    top, left = math.floor(y.item()), math.floor(x.item())
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
                total = total + plane[row, column] * (1 - (y - row).abs()) * (1 - (x - column).abs())
    return total if isinstance(total, torch.Tensor) else torch.zeros_like(plane[0, 0])


def points_of(batch, groups, count, dtype=torch.float64):
    """Points inside and a little outside."""
    return (torch.rand(batch, groups, count, 2, dtype=dtype) * 2.6 - 1.3).requires_grad_()


def call(size=(3, 4), count=5, heads=4, groups=2, dtype=torch.float64, batch=2, table=(5, 7)):
    """Arguments of a call: strided views of packed tensors, a table of another map's size."""
    q = torch.randn(batch, *size, 3, heads, 3, dtype=dtype)[:, :, :, 1].requires_grad_()
    kv = torch.randn(batch, count, 2, heads, 3, dtype=dtype)
    k, v = (t.requires_grad_() for t in kv.detach().unbind(2))
    points = points_of(batch, groups, count, torch.float64 if dtype == torch.float64 else torch.float32)
    return q, k, v, points, torch.randn(heads, *table, dtype=dtype).requires_grad_()


def defined(q, k, v, points, table, grid, scale=0.4):
    """Every query and head by itself."""
    batch, height, width, heads, _ = q.shape
    out = torch.empty_like(q)
    for b, i, j, n in [(b, i, j, n) for b in range(batch) for i in range(height) for j in range(width)
                       for n in range(heads)]:  # fmt: skip
        place = [2 * at / (side - 1) - 1 if grid == "corners" else 2 * (at + 0.5) / side - 1
                 for at, side in ((i, height), (j, width))]  # fmt: skip
        logits = []
        for m in range(k.shape[1]):
            point = points[b, n // (heads // points.shape[1]), m]
            logits.append(scale * (q[b, i, j, n] * k[b, m, n]).sum())
            if table is not None:
                y, x = ((at - p) / 2 for at, p in zip(place, point, strict=True))
                y, x = ((d + 1) / 2 * (side - 1) for d, side in zip((y, x), table.shape[1:], strict=True))
                logits[-1] = logits[-1] + read(table[n], y, x)
        out[b, i, j, n] = torch.stack(logits).softmax(0) @ v[b, :, n]
    return out


@pytest.fixture(params=[1 << 20, 12], ids=["one chunk", "small chunks"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(deformable_torch, "CHUNK", request.param)


def assert_same(out, expected, wanted):
    cotangent = torch.randn_like(out)
    assert torch.allclose(out, expected)
    for a, b in zip(*(torch.autograd.grad(o, wanted, cotangent) for o in (out, expected)), strict=True):
        assert torch.allclose(a, b)


def test_points_are_read_between_pixels_by_group():
    x = torch.randn(2, 4, 3, 6, dtype=torch.float64, requires_grad=True)
    points = points_of(2, 3, 5)
    expected = torch.stack([
        torch.stack([
            torch.cat([read(x[b, :, :, 2 * g : 2 * g + 2], *((points[b, g, n] + 1) / 2 * torch.tensor([3, 2])))
                       for g in range(3)])
            for n in range(5)])
        for b in range(2)])  # fmt: skip
    assert_same(sample_points(x, points), expected, (x, points))


@pytest.mark.parametrize("grid", ["corners", "centers"])
@pytest.mark.parametrize("with_table", [True, False])
def test_logits_have_the_bias_of_the_way_to_the_point(grid, with_table, chunk):
    q, k, v, points, table = call()
    table = table if with_table else None
    out = deformable_attention(q, k, v, points, table, grid=grid, scale=0.4)
    wanted = (q, k, v, points, table) if with_table else (q, k, v)
    assert_same(out, defined(q, k, v, points, table, grid), wanted)


SHAPES = [[3, 4], [1, 2], [2, 1]]


def multi_scale(dtype=torch.float64, queries=4, value_dtype=None):
    """Arguments of a call with places inside and outside, and weights that sum to nothing."""
    value = torch.randn(2, 16, 2, 3, dtype=value_dtype or dtype).requires_grad_()
    places = (torch.rand(2, queries, 2, 3, 2, 2, dtype=dtype) * 1.6 - 0.3).requires_grad_()
    return value, places, torch.randn(2, queries, 2, 3, 2, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("starts", [None, [1, 0, 14]], ids=["in a row", "anywhere"])
def test_levels_are_read_where_they_start(starts, monkeypatch):
    value, places, weights = multi_scale()
    monkeypatch.setattr(deformable_torch, "CHUNK", 1)
    first = [0, 12, 14] if starts is None else starts
    expected = torch.zeros(2, 4, 2, 3, dtype=torch.float64)
    for b, q, m, level, p in torch.cartesian_prod(*map(torch.arange, (2, 4, 2, 3, 2))).tolist():
        height, width = SHAPES[level]
        plane = value[b, first[level] : first[level] + height * width, m].view(height, width, 3)
        x, y = places[b, q, m, level, p] * torch.tensor([width, height]) - 0.5
        expected[b, q, m] = expected[b, q, m] + weights[b, q, m, level, p] * read(plane, y, x)
    out = ms_deform_attn(value, torch.tensor(SHAPES), starts, places, weights)
    assert_same(out, expected.flatten(2), (value, places, weights))
    assert torch.equal(out, ms_deform_attn(value, SHAPES, first, places, weights))


def test_second_derivatives_are_right():
    maps = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    places = (torch.rand(1, 2, 1, 2, dtype=torch.float64) * 2.4 - 1.2).requires_grad_()
    for align in (True, False):
        assert torch.autograd.gradgradcheck(lambda m, p, a=align: bilinear(m, p, a), (maps, places))
    inputs = call((1, 2), 2, 2, 1, batch=1, table=(3, 3))
    assert torch.autograd.gradgradcheck(deformable_attention, inputs)
    value, places, weights = (t[:1, :2].detach().requires_grad_() for t in multi_scale())
    run = lambda v, p, w: ms_deform_attn(v, [[1, 2]], None, p[:, :, :, :1], w[:, :, :, :1])  # noqa: E731
    assert torch.autograd.gradgradcheck(run, (value, places, weights))


def test_no_more_logits_than_a_chunk_exist(monkeypatch):
    inputs = call()
    monkeypatch.setattr(deformable_torch, "CHUNK", 3 * 4 * 5)  # three queries
    sizes = []
    bias = deformable_torch.bias
    monkeypatch.setattr(deformable_torch, "bias", lambda *a: sizes.append((b := bias(*a)).numel()) or b)
    deformable_attention(*inputs).sum().backward()
    assert len(sizes) == 2 * 2 * 4 and max(sizes) == deformable_torch.CHUNK


def test_no_more_samples_exist_than_values(monkeypatch):
    inputs = value, *_ = multi_scale(queries=64)
    monkeypatch.setattr(deformable_torch, "CHUNK", 1)
    sizes = []
    read_maps = deformable_torch.bilinear
    monkeypatch.setattr(deformable_torch, "bilinear", lambda *a: sizes.append((b := read_maps(*a)).numel()) or b)
    ms_deform_attn(inputs[0], SHAPES, None, *inputs[1:]).sum().backward()
    assert len(sizes) > 6 and 3 * max(sizes) <= value.numel()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_reads_at_float32_places(dtype):
    x = torch.arange(1000, dtype=torch.float32).view(1, 1, 1000, 1)
    place = torch.tensor([[[[0.0, 2 * 600.5 / 999 - 1]]]])
    assert sample_points(x / 1000, place).item() == pytest.approx(0.6005, abs=1e-4)
    assert sample_points((x / 1000).to(dtype), place).item() == pytest.approx(0.6005, abs=3e-3)
    inputs = call(dtype=dtype)
    out = deformable_attention(*inputs)
    exact = deformable_attention(*(t.double() for t in inputs))
    assert out.dtype == dtype and (out - exact).norm() < 0.02 * exact.norm()
    out.sum().backward()
    assert all(t.grad.dtype == t.dtype and t.grad.isfinite().all() for t in inputs[1:])
    value, places, weights = multi_scale(torch.float32, value_dtype=dtype)
    out = ms_deform_attn(value, SHAPES, None, places, weights)
    out.sum().backward()
    assert out.dtype == value.grad.dtype == dtype and places.grad.dtype == torch.float32


def test_sizes_in_tensors_compile_to_one_graph():
    value, places, weights = multi_scale(torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(ms_deform_attn, fullgraph=True, backend="eager")
    shapes = torch.tensor(SHAPES)
    out = compiled(value, shapes, None, places, weights)
    assert torch.allclose(out, ms_deform_attn(value, shapes, None, places, weights), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"grid": "edges"}, ValueError, "grid='edges' must be 'centers' or 'corners'"),
        ({"k": torch.randn(2, 5, 4, 2).double()}, ValueError, r"k has shape \(2, 5, 4, 2\); it must be \(2, N, 4, 3\)"),
        ({"v": torch.randn(2, 6, 4, 3).double()}, ValueError, "v has shape"),
        ({"points": torch.rand(2, 3, 5, 2)}, ValueError, "with groups that divide the 4 heads"),
        ({"points": torch.rand(2, 2, 5, 3)}, ValueError, r"it must be \(B, groups, N, 2\)"),
        ({"points": torch.rand(2, 2, 5, 2).half()}, TypeError, "points is torch.float16"),
        ({"table": torch.randn(3, 5, 5)}, ValueError, r"table has shape \(3, 5, 5\); it must be \(4, 2h - 1, 2w - 1\)"),
        ({"q": torch.randn(2, 3, 4, 4, 3)}, TypeError, "must share one floating-point dtype"),
    ],
    ids=["grid", "keys", "values", "groups", "points", "half", "table", "dtypes"],
)
def test_wrong_arguments_are_named(change, error, message):
    q, k, v, points, table = call()
    with pytest.raises(error, match=message):
        deformable_attention(**{"q": q, "k": k, "v": v, "points": points, "table": table, **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"spatial_shapes": [[3, 4], [2, 2], [2, 1]]},
            ValueError,
            "2x1 level that starts at 16.*inside the 16",
        ),
        ({"spatial_shapes": [[3, 4], [1, 2]]}, ValueError, r"it must be \(2, Q, 2, 2, P, 2\)"),
        ({"spatial_shapes": torch.rand(3, 2)}, TypeError, "spatial_shapes is torch.float32; it must be torch.int64"),
        ({"spatial_shapes": torch.ones(2, 3)}, ValueError, r"it must be \(L, 2\)"),
        ({"level_start_index": [0, 12]}, ValueError, r"level_start_index=\[0, 12\] must have one entry"),
        ({"level_start_index": [0, 12, 15]}, ValueError, "2x1 level that starts at 15"),
        ({"attention_weights": torch.rand(2, 4, 2, 3, 1)}, ValueError, "attention_weights has shape"),
        ({"value": torch.ones(2, 16, 2, 3, dtype=torch.int64)}, TypeError, "value is torch.int64"),
    ],
    ids=["too many pixels", "levels", "float sizes", "sizes", "starts", "too far", "weights", "whole numbers"],
)
def test_wrong_levels_are_named(change, error, message):
    value, places, weights = multi_scale()
    arguments = {"value": value, "spatial_shapes": SHAPES, "level_start_index": None, "sampling_locations": places,
                 "attention_weights": weights}  # fmt: skip
    with pytest.raises(error, match=message):
        ms_deform_attn(**{**arguments, **change})


def test_points_that_do_not_fit_a_map_are_named():
    with pytest.raises(ValueError, match="have 4 groups; they must divide the 6 channels of x"):
        sample_points(torch.randn(2, 3, 3, 6), torch.rand(2, 4, 5, 2))
    with pytest.raises(ValueError, match="must agree in the batch"):
        sample_points(torch.randn(3, 3, 3, 8), torch.rand(2, 4, 5, 2))


def test_backends_that_lack_the_op_are_passed_over_unless_asked_for():
    inputs = call(dtype=torch.float32)
    assert explain(deformable_attention, *inputs).startswith("torch (not triton: it has no deformable_attention")
    with use_backend("triton"), pytest.raises(RuntimeError, match="it has no deformable_attention"):
        deformable_attention(*inputs)
