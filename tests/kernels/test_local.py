# SPDX-License-Identifier: Apache-2.0
"""What the local attention ops promise, beyond the golden records: any geometry, gradients, tracers, memory, errors."""

import io

import loops
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from visionattn.kernels import (
    LocalPattern,
    halo_attention,
    local_attention,
    local_torch,
    neighborhood_attention,
    tiling,
    window_attention,
)


def packed(*size: int, batch: int = 2, heads: int = 2, dim: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    """A qkv projection's output; q, k and v are views of it, as in every model."""
    return torch.randn(batch, *size, 3, heads, dim, dtype=dtype)


def split(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return qkv.unbind(-3)  # type: ignore[return-value]


GEOMETRIES = [
    # size, kernel, stride, dilation, causal
    ((7, 11), (3, 5), (1, 1), (1, 2), (False, False)),
    ((13, 8), (4, 7), (3, 2), (2, 1), (True, False)),
    ((9, 10), (9, 10), (1, 1), (1, 1), (False, False)),
    ((11, 6), (1, 6), (1, 6), (5, 1), (False, True)),
    ((17,), (6,), (4,), (2,), (True,)),
    ((4, 5, 6), (2, 3, 3), (1, 2, 1), (2, 1, 2), (False, True, False)),
]


@pytest.mark.parametrize(("size", "kernel", "stride", "dilation", "causal"), GEOMETRIES)
def test_neighborhood_attention_follows_its_definition(size, kernel, stride, dilation, causal):
    q, k, v = split(packed(*size))
    bias = torch.randn(2, *(2 * n - 1 for n in kernel), dtype=torch.float64)
    out = neighborhood_attention(
        q, k, v, kernel, stride=stride, dilation=dilation, is_causal=causal, bias=bias, scale=0.3
    )
    expected = loops.neighborhood_attention(q, k, v, kernel, stride, dilation, causal, bias, scale=0.3)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shift", [0, 1, 3])
@pytest.mark.parametrize("size", [(7, 11), (3, 2), (8, 4)], ids=str)
def test_window_attention_follows_its_definition(size, shift):
    q, k, v = split(packed(*size))
    pad_k, pad_v = torch.randn(2, 2, 6, dtype=torch.float64)
    out = window_attention(q, k, v, 4, shift=shift, pad_k=pad_k, pad_v=pad_v)
    torch.testing.assert_close(out, loops.window_attention(q, k, v, 4, shift, pad_k, pad_v), rtol=1e-10, atol=1e-12)


def test_full_kernel_is_plain_attention():
    q, k, v = split(packed(5, 7))
    flat = [t.flatten(1, 2).transpose(1, 2) for t in (q, k, v)]
    plain = torch.nn.functional.scaled_dot_product_attention(*flat).transpose(1, 2).unflatten(1, (5, 7))
    torch.testing.assert_close(neighborhood_attention(q, k, v, (5, 7)), plain, rtol=1e-10, atol=1e-12)


def test_halo_takes_ragged_maps():
    """Blocks that the map cuts off see zeros beyond it, as blocks at the border do."""
    q, k, v = split(packed(7, 10))
    out = halo_attention(q, k, v, 4, 1)
    larger = [torch.nn.functional.pad(t, (0, 0, 0, 0, 0, 2, 0, 1)) for t in (q, k, v)]
    torch.testing.assert_close(out, halo_attention(*larger, 4, 1)[:, :7, :10], rtol=1e-10, atol=1e-12)


@pytest.fixture
def tiny_chunks(monkeypatch):
    """Work cut into many pieces, along heads, tiles and images, as in large problems."""
    monkeypatch.setattr(tiling, "CHUNK", 600)
    tiling.choose_tile.cache_clear()
    local_torch.tile_kinds.cache_clear()
    yield
    tiling.choose_tile.cache_clear()
    local_torch.tile_kinds.cache_clear()


CALLS = {
    "neighborhood": lambda q, k, v, t: neighborhood_attention(q, k, v, 3, dilation=2, bias=t["bias"], return_lse=True),
    "causal": lambda q, k, v, t: neighborhood_attention(
        q, k, v, 3, is_causal=(True, False), extra_k=t["extra_k"], extra_v=t["extra_v"], return_lse=True
    ),
    "window": lambda q, k, v, t: window_attention(
        q, k, v, 3, shift=1, bias=t["bias"], pad_k=t["pad_k"], pad_v=t["pad_v"], return_lse=True
    ),
    "halo": lambda q, k, v, t: halo_attention(
        q, k, v, 3, 1, rel_tables=(t["rows"], t["columns"]), scale_rel=True, return_lse=True
    ),
}


def tensors(batch=2, dtype=torch.float64) -> dict[str, Tensor]:
    extra, pad, rows = (batch, 4, 2, 6), (2, 6), (9, 6)
    shapes = {"bias": (2, 5, 5), "extra_k": extra, "extra_v": extra, "pad_k": pad, "pad_v": pad, "rows": rows,
              "columns": rows}  # fmt: skip
    return {name: torch.randn(shape, dtype=dtype, requires_grad=True) for name, shape in shapes.items()}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_gradients_are_those_of_finite_differences(call):
    t = tensors()
    qkv = packed(6, 7, batch=2).requires_grad_()

    def run(qkv, *values):
        return call(*split(qkv), dict(zip(t, values, strict=True)))

    assert torch.autograd.gradcheck(run, (qkv, *t.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (qkv, *t.values()), fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_chunks_do_not_change_the_result(call, batch, tiny_chunks, monkeypatch):
    t = tensors(batch=batch)
    qkv = packed(13, 9, batch=batch).requires_grad_()
    results = []
    for chunk in (600, 20_000, 1 << 19):
        tiling.choose_tile.cache_clear()
        local_torch.tile_kinds.cache_clear()
        monkeypatch.setattr(tiling, "CHUNK", chunk)
        out, lse = call(*split(qkv), t)
        grads = torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum() + lse.sin().sum(),
                                    (qkv, *t.values()), allow_unused=True)  # fmt: skip
        results.append([out, lse, *(g for g in grads if g is not None)])
    for small, middle, large in zip(*results, strict=True):
        torch.testing.assert_close(small, large, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(middle, large, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_half_precision_errs_no_more_than_its_rounding(call):
    t, qkv = tensors(), packed(9, 8)
    exact, exact_lse = call(*split(qkv), t)
    half = {name: value.detach().to(torch.bfloat16) for name, value in t.items()}
    out, lse = call(*split(qkv.to(torch.bfloat16)), half)
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32
    assert (out - exact).abs().max() < 4 * torch.finfo(torch.bfloat16).eps * exact.abs().max()
    # Rounded inputs move a logit by about eps times its terms.
    assert (lse - exact_lse).abs().max() < 8 * torch.finfo(torch.bfloat16).eps * exact_lse.abs().max()


def test_autocast_casts_queries_and_keys_but_keeps_float64():
    qkv, bias = packed(8, 7, dtype=torch.float32).requires_grad_(), torch.randn(2, 5, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = neighborhood_attention(*split(qkv), 3, bias=bias)
        assert neighborhood_attention(*split(qkv.double()), 3).dtype == torch.float64
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert bias.grad.dtype == torch.float32 and bool(bias.grad.isfinite().all())
    exact = neighborhood_attention(*split(qkv.detach()), 3, bias=bias.detach())
    assert (out - exact).abs().max() < 8 * torch.finfo(torch.bfloat16).eps * exact.abs().max()


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_compiles_to_one_graph(dynamic):
    """aot_eager traces forward and backward as every backend does, without a C++ compiler."""
    torch._dynamo.reset()
    bias = torch.randn(2, 5, 5, dtype=torch.float64, requires_grad=True)

    def run(qkv, bias):
        local = neighborhood_attention(*split(qkv), 3, dilation=2, bias=bias)
        return local if dynamic else window_attention(local, local, local, 4, shift=2)

    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in [(9, 8), (11, 7)] if dynamic else [(9, 8)]:
        qkv = packed(*size).requires_grad_()
        outs = [f(qkv, bias) for f in (compiled, run)]
        grads = [torch.autograd.grad(out.square().sum(), (qkv, bias)) for out in outs]
        torch.testing.assert_close(outs[0], outs[1], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-10)


def test_compiled_code_does_not_recompile_for_the_same_shape():
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda qkv: neighborhood_attention(*split(qkv), 3), fullgraph=True, backend=count)
    for _ in range(3):
        compiled(packed(8, 9))
    assert len(graphs) == 1


class Local(torch.nn.Module):
    """All three forms, for export."""

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.randn(2, 5, 5))

    def forward(self, qkv):
        x = neighborhood_attention(*split(qkv), 3, dilation=2, bias=self.bias)
        x = window_attention(x, x, x, 4, shift=2)
        return halo_attention(x, x, x, 4, 1)


@pytest.mark.slow
def test_exports_with_free_batch_height_and_width():
    dim = torch.export.Dim
    module, example = Local().eval(), packed(12, 10, dtype=torch.float32)
    shapes = ({0: dim("batch", min=1, max=64), 1: dim("height", min=6, max=512), 2: dim("width", min=6, max=512)},)
    program = torch.export.export(module, (example,), dynamic_shapes=shapes)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    for batch, height, width in ((2, 12, 10), (1, 6, 17), (3, 31, 8)):
        qkv = packed(height, width, batch=batch, dtype=torch.float32)
        torch.testing.assert_close(loaded(qkv), module(qkv), rtol=1e-4, atol=1e-5)


def test_checkpointing_gives_the_same_gradients():
    qkv = packed(9, 8).requires_grad_()
    run = lambda qkv: neighborhood_attention(*split(qkv), 3)  # noqa: E731
    plain = torch.autograd.grad(run(qkv).square().sum(), qkv)
    again = torch.autograd.grad(checkpoint(run, qkv, use_reentrant=False).square().sum(), qkv)
    torch.testing.assert_close(plain, again, rtol=0, atol=0)


def test_backward_keeps_nothing_but_the_inputs():
    kept = []
    qkv, bias = packed(20, 22).requires_grad_(), torch.randn(2, 13, 13, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        neighborhood_attention(*split(qkv), 7, bias=bias)
    inputs = {qkv.untyped_storage().data_ptr(), bias.untyped_storage().data_ptr()}
    assert {t.untyped_storage().data_ptr() for t in kept} == inputs


@pytest.mark.parametrize("kernel", [3, 7, 13])
def test_no_tensor_grows_with_the_kernel(kernel):
    """The largest intermediate stays at a chunk, or a few times k and v, whatever the kernel."""
    q, k, v = split(packed(64, 64, batch=1, heads=4, dim=32, dtype=torch.float32))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for t in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(t, Tensor) and t.untyped_storage().data_ptr() != q.untyped_storage().data_ptr():
                    largest = max(largest, t.untyped_storage().nbytes())
            return result

    local_torch.tile_kinds.cache_clear()
    with Watch(), torch.no_grad():
        neighborhood_attention(q, k, v, kernel)
    assert largest <= max(4 * tiling.CHUNK, 2 * k.nelement() * 4 * 2)


def test_packed_views_are_read_in_place():
    """No contiguous copy of q, k or v is made where their rows can be read as they are."""
    q, k, v = split(packed(16, 12))
    assert local_torch.as_rows(k).untyped_storage().data_ptr() == k.untyped_storage().data_ptr()


BAD_CALLS = {
    "kernel larger than the map": (
        lambda q: neighborhood_attention(q, q, q, 9),
        ValueError,
        r"kernel_size=9 exceeds axis 1 of the 9x8 map; use at most 8",
    ),
    "dilation leaves too few": (
        lambda q: neighborhood_attention(q, q, q, 3, dilation=3),
        ValueError,
        r"dilation=3 leaves 2 positions to kernel_size=3 along axis 1 .* at most 2",
    ),
    "stride over kernel": (
        lambda q: neighborhood_attention(q, q, q, 3, stride=4),
        ValueError,
        r"stride=4 exceeds kernel_size=3",
    ),
    "kernel of zero": (lambda q: neighborhood_attention(q, q, q, 0), ValueError, r"kernel_size=0 is not allowed"),
    "axes do not match": (
        lambda q: neighborhood_attention(q, q, q, (3, 3, 3)),
        ValueError,
        r"kernel_size=\(3, 3, 3\) has 3 values, but the map has 2 axes",
    ),
    "k of another size": (
        lambda q: neighborhood_attention(q, q[:, :5], q[:, :5], 3),
        ValueError,
        r"q has 9 positions along axis 0, k has 5",
    ),
    "v of another size": (lambda q: neighborhood_attention(q, q, q[:, :5], 3), ValueError, r"v has shape .* like k"),
    "head_dim differs": (
        lambda q: neighborhood_attention(q, q[..., :4], q, 3),
        ValueError,
        r"must agree in batch, number of axes and head_dim",
    ),
    "heads do not divide": (
        lambda q: neighborhood_attention(
            q, q.repeat(1, 1, 1, 2, 1)[..., :3, :], q.repeat(1, 1, 1, 2, 1)[..., :3, :], 3
        ),
        ValueError,
        r"k has 3 heads, which do not divide the 2 heads of q",
    ),
    "dtypes differ": (
        lambda q: neighborhood_attention(q, q.float(), q, 3),
        TypeError,
        r"float64, torch.float32 and torch.float64; they must share",
    ),
    "integers": (lambda q: neighborhood_attention(q.long(), q.long(), q.long(), 3), TypeError, r"floating-point"),
    "bias of another kernel": (
        lambda q: neighborhood_attention(q, q, q, 3, bias=q.new_ones(2, 7, 7)),
        ValueError,
        r"bias has shape \(2, 7, 7\); it must be \(2, 5, 5\)",
    ),
    "extra keys alone": (
        lambda q: neighborhood_attention(q, q, q, 3, extra_k=q.new_ones(2, 1, 2, 6)),
        ValueError,
        r"extra_k and extra_v must be given together",
    ),
    "shift too large": (
        lambda q: window_attention(q, q, q, 4, shift=4),
        ValueError,
        r"shift=4 must be below the window size 4",
    ),
    "pad key of another size": (
        lambda q: window_attention(q, q, q, 4, pad_k=q.new_ones(6)),
        ValueError,
        r"pad_k has shape \(6,\); it must be \(2, 6\)",
    ),
    "negative halo": (lambda q: halo_attention(q, q, q, 4, -1), ValueError, r"halo_size=-1 is not allowed"),
    "odd query grid": (
        lambda q: halo_attention(q[:, :2], q, q, 4, 1, query_stride=2),
        ValueError,
        r"q has 2 positions along axis 0, k has 9",
    ),
    "one relative table": (
        lambda q: halo_attention(q, q, q, 4, 1, rel_tables=(q.new_ones(11, 6),)),
        ValueError,
        r"rel_tables has 1 tables",
    ),
    "no batch": (
        lambda q: neighborhood_attention(q[0, 0], q[0, 0], q[0, 0], 3),
        ValueError,
        r"one to three spatial axes",
    ),
    "empty map": (
        lambda q: neighborhood_attention(q[:, :0], q[:, :0], q[:, :0], 3),
        ValueError,
        r"must not have empty axes",
    ),
    "unknown boundary": (
        lambda q: LocalPattern(3, boundary="wrap"),
        ValueError,
        r"boundary='wrap' is unknown; use one of shift, pad",
    ),
}


@pytest.mark.parametrize(("call", "kind", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls_say_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call(torch.randn(2, 9, 8, 2, 6, dtype=torch.float64))


def test_scale_of_zero_is_a_value():
    q, k, v = split(packed(6, 5))
    out = local_attention(q, k, v, LocalPattern((6, 5)), scale=0.0)
    torch.testing.assert_close(out, v.mean((1, 2), keepdim=True).expand_as(out), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("size", "kernel", "stride", "dilation", "causal"), GEOMETRIES)
def test_visits_count_what_the_tiles_compute(size, kernel, stride, dilation, causal):
    pattern = LocalPattern(kernel, stride=stride, dilation=dilation, causal=causal)
    tile = tiling.choose_tile(pattern.axes(len(size)), size, 8, False)
    axes = tiling.cut_axes(pattern, size, size, 8, False, torch.device("cpu"))
    computed = 1
    for axis in axes:
        computed *= axis.query.numel() * axis.key.shape[1]
    assert pattern.visits(tile, size) == computed
