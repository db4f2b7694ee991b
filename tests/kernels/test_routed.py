# SPDX-License-Identifier: Apache-2.0
"""Routed attention against its definition, pixel by pixel; its gradients, its memory, its errors."""

import pytest
import torch

from visionattn.kernels import explain, routed_attention, routed_torch, use_backend


def call(grid=(2, 3), region=(2, 3), kv_region=(2, 3), topk=3, weighted=False, dtype=torch.float64, batch=2):
    """Arguments of a call: strided views of packed maps, and routes that repeat regions."""
    height, width = grid[0] * region[0], grid[1] * region[1]
    q = torch.randn(batch, height, width, 3, 2, 4, dtype=dtype)[:, :, :, 1].requires_grad_()
    size = (grid[0] * kv_region[0], grid[1] * kv_region[1])
    k, v = (torch.randn(batch, *size, 2, d, dtype=dtype).requires_grad_() for d in (4, 5))
    routes = torch.randint(grid[0] * grid[1], (batch, grid[0] * grid[1], topk))
    weights = torch.rand(routes.shape, dtype=dtype).requires_grad_() if weighted else None
    return q, k, v, routes, grid, weights


def defined(q, k, v, routes, grid, weights, scale=0.3):
    """Every query by itself."""
    out = q.new_empty(*q.shape[:-1], v.shape[-1])
    rows, columns = k.shape[1] // grid[0], k.shape[2] // grid[1]
    for b, i, j in [(b, i, j) for b in range(q.shape[0]) for i in range(q.shape[1]) for j in range(q.shape[2])]:
        region = i * grid[0] // q.shape[1] * grid[1] + j * grid[1] // q.shape[2]
        keys, values = [], []
        for n, chosen in enumerate(routes[b, region].tolist()):
            top, left = chosen // grid[1] * rows, chosen % grid[1] * columns
            factor = 1 if weights is None else weights[b, region, n]
            for y, x in [(y, x) for y in range(top, top + rows) for x in range(left, left + columns)]:
                keys.append(k[b, y, x] * factor)
                values.append(v[b, y, x] * factor)
        logits = torch.einsum("hd,nhd->hn", q[b, i, j], torch.stack(keys)) * scale
        out[b, i, j] = torch.einsum("hn,nhd->hd", logits.softmax(-1), torch.stack(values))
    return out


@pytest.fixture(params=[1 << 22, 1], ids=["one chunk", "a chunk a region"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(routed_torch, "CHUNK", request.param)


@pytest.mark.parametrize("case", [{}, {"weighted": True}, {"kv_region": (1, 2), "topk": 1}], ids=str)
def test_pixels_see_the_pixels_of_the_routed_regions(case, chunk):
    q, k, v, routes, grid, weights = arguments = call(**case)
    out = routed_attention(q, k, v, routes, grid, scale=0.3, route_weights=weights)
    expected = defined(*arguments)
    cotangent = torch.randn_like(out)
    wanted = [t for t in (q, k, v, weights) if t is not None]
    grads, defined_grads = (torch.autograd.grad(o, wanted, cotangent) for o in (out, expected))
    assert torch.allclose(out, expected)
    assert all(torch.allclose(a, b) for a, b in zip(grads, defined_grads, strict=True))


@pytest.mark.parametrize("weighted", [False, True])
def test_second_derivatives_are_right(weighted):
    q, k, v, routes, grid, weights = call((1, 2), (1, 2), (1, 2), 2, weighted, batch=1)
    inputs = (q, k, v) if weights is None else (q, k, v, weights)
    run = lambda q, k, v, *w: routed_attention(q, k, v, routes, grid, route_weights=w[0] if w else None)  # noqa: E731
    assert torch.autograd.gradgradcheck(run, inputs)


def test_no_more_than_a_chunk_is_gathered(monkeypatch):
    q, k, v, routes, grid, _ = call(topk=4)
    monkeypatch.setattr(routed_torch, "CHUNK", 4 * 6 * 2 * 9 * 2)  # two regions
    gathered = []
    attend = routed_torch._attend
    monkeypatch.setattr(
        routed_torch, "_attend", lambda q, k, v, s: gathered.append(k.numel() + v.numel()) or attend(q, k, v, s)
    )
    routed_attention(q, k, v, routes, grid).sum().backward()
    assert len(gathered) == 12 and max(gathered) == routed_torch.CHUNK


def test_half_precision_gradients_are_summed_in_float32():
    q, k, v, _, grid, _ = call((8, 8), (1, 1), (1, 1), dtype=torch.bfloat16, batch=1)
    routes = torch.zeros(1, 64, 1, dtype=torch.int64)  # one key for all: its value's gradient is a sum of 64
    routed_attention(q, k, v, routes, grid).sum().backward()
    assert (v.grad[0, 0, 0] == 64).all() and (v.grad[0, 1:] == 0).all()
    routed_attention(q, k, v, routes, grid).mul(1.0078125).sum().backward()  # 64 summands that bfloat16 would round
    assert torch.allclose(v.grad[0, 0, 0].float(), torch.tensor(128.5), atol=0.5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"grid": (2, 4)}, ValueError, r"grid=\(2, 4\) must divide the 4x9 map of q"),
        ({"k": torch.randn(2, 4, 9, 2, 5, dtype=torch.float64)}, ValueError, "must agree in batch, heads and head_dim"),
        ({"v": torch.randn(2, 2, 9, 2, 5, dtype=torch.float64)}, ValueError, "v has shape"),
        ({"routes": torch.zeros(2, 5, 3, dtype=torch.int64)}, ValueError, r"it must be \(2, 6, n\)"),
        ({"routes": torch.zeros(2, 6, 3, dtype=torch.int32)}, TypeError, "routes is torch.int32"),
        ({"q": torch.randn(2, 4, 9, 2, 4)}, TypeError, "must share one floating-point dtype"),
        ({"route_weights": torch.rand(2, 6, 2)}, ValueError, "route_weights has shape"),
    ],
    ids=["grid", "shapes", "values", "routes", "routes' dtype", "dtypes", "weights"],
)
def test_wrong_arguments_are_named(change, error, message):
    q, k, v, routes, grid, _ = call()
    with pytest.raises(error, match=message):
        routed_attention(**{"q": q, "k": k, "v": v, "routes": routes, "grid": grid, **change})


def test_backends_that_lack_the_op_are_passed_over_unless_asked_for():
    q, k, v, routes, grid, _ = call(dtype=torch.float32)
    assert explain(routed_attention, q, k, v, routes, grid).startswith("torch (not triton: it has no routed_attention")
    with use_backend("triton"), pytest.raises(RuntimeError, match="it has no routed_attention"):
        routed_attention(q, k, v, routes, grid)
