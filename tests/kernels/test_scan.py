# SPDX-License-Identifier: Apache-2.0
"""The selective scan against its recurrence, token by token; gradients, memory, half precision, tracers, errors."""

import pytest
import torch
import torch.nn.functional as F

from visionattn.kernels import explain, scan_torch, selective_scan, use_backend

SHAPES = [(2, 13, 5, 3), (1, 1, 2, 1), (3, 40, 4, 2), (2, 300, 3, 4)]


def call(batch=2, length=13, channels=5, size=3, dtype=torch.float64):
    """Arguments of a call; sequences are views with the channels first, as convolutions leave them."""
    u, delta, z = (torch.randn(batch, channels, length, dtype=dtype).transpose(1, 2) for _ in range(3))
    B, C = (torch.randn(batch, length, 2 * size, dtype=dtype)[..., ::2] for _ in range(2))
    args = {"u": u, "delta": delta, "A": -torch.rand(channels, size, dtype=dtype) * 2, "B": B, "C": C, "z": z}
    args |= {name: torch.randn(channels, dtype=dtype) for name in ("D", "delta_bias")}
    return {name: x.requires_grad_() for name, x in args.items()}


def defined(u, delta, A, B, C, D, z, delta_bias, reverse=False):
    """One token after the other; output and last state."""
    state, out = torch.zeros(u.shape[0], *A.shape, dtype=u.dtype), [None] * u.shape[1]
    for t in reversed(range(u.shape[1])) if reverse else range(u.shape[1]):
        step = F.softplus(delta[:, t] + delta_bias)
        state = (step[..., None] * A).exp() * state + (step * u[:, t])[..., None] * B[:, t, None]
        out[t] = ((state * C[:, t, None]).sum(-1) + D * u[:, t]) * F.silu(z[:, t])
    return torch.stack(out, 1), state


@pytest.fixture(params=[1 << 18, 1], ids=["one chunk", "a chunk a channel"])
def chunk(request, monkeypatch):
    monkeypatch.setitem(scan_torch.CHUNK, "cpu", request.param)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_states_follow_token_by_token(shape, reverse, chunk):
    args = call(*shape)
    got = selective_scan(**args, delta_softplus=True, reverse=reverse, return_last_state=True)
    expected = defined(**args, reverse=reverse)
    cotangents = [torch.randn_like(x) for x in expected]
    grads, defined_grads = (
        torch.autograd.grad(x, list(args.values()), cotangents, allow_unused=True) for x in (got, expected)
    )
    assert all(torch.allclose(a, b) for a, b in zip(got, expected, strict=True))
    for name, a, b in zip(args, grads, defined_grads, strict=True):
        assert torch.allclose(a, b, atol=1e-10), name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tracers_tree_is_the_same_scan(shape):
    u, delta, A, B, C = (x.detach() for name, x in call(*shape).items() if name in ("u", "delta", "A", "B", "C"))
    delta = F.softplus(delta)
    got = scan_torch.all_at_once(u, delta, B, C, A)
    expected = selective_scan(u, delta, A, B, C, return_last_state=True)
    assert all(torch.allclose(a, b) for a, b in zip(got, expected, strict=True))


def test_first_and_second_derivatives_are_right():
    args = call(1, 5, 2, 2)
    names = list(args)
    run = lambda *x: selective_scan(**dict(zip(names, x, strict=True)), delta_softplus=True)  # noqa: E731
    assert torch.autograd.gradcheck(run, tuple(args.values()))
    assert torch.autograd.gradgradcheck(run, tuple(args.values()))


def test_gradients_reach_only_what_wants_them():
    args = {name: x.detach() for name, x in call().items()}
    args["A"].requires_grad_()
    (grad,) = torch.autograd.grad(selective_scan(**args).sum(), args["A"])
    everything = {name: x.clone().requires_grad_() for name, x in args.items()}
    assert torch.allclose(grad, torch.autograd.grad(selective_scan(**everything).sum(), everything["A"])[0])


def test_no_more_than_a_chunk_of_states_is_kept(monkeypatch):
    args = call(batch=3, length=16, channels=6, size=4)
    monkeypatch.setitem(scan_torch.CHUNK, "cpu", 16 * 4 * 4)  # four channels of an image
    kept = []
    scan = scan_torch.scan_in_place
    monkeypatch.setattr(scan_torch, "scan_in_place", lambda a, x: kept.append(x.numel()) or scan(a, x))
    selective_scan(**args).sum().backward()
    assert len(kept) == 3 * 2 * 3 and max(kept) == 16 * 4 * 4  # forward, states again, gradients
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        selective_scan(**args)
    assert max(saved) <= args["u"].numel()  # no states


def test_products_that_underflow_do_no_harm():
    """A state that fades by exp(-50) a token: sums of logarithms or quotients of products would not survive it."""
    args = {name: x.detach() for name, x in call(1, 200, 3, 2, torch.float32).items()}
    args |= {"delta": torch.full_like(args["delta"], 50.0), "delta_bias": torch.zeros(3), "A": -torch.ones(3, 2)}
    got = selective_scan(**args, delta_softplus=True)
    assert torch.allclose(got, defined(**args)[0], rtol=1e-4, atol=1e-3) and torch.isfinite(got).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_states_in_float32(dtype):
    args = {name: x.detach() for name, x in call(2, 120, 4, 8, torch.float32).items()}
    halves = {name: x if name in ("A", "D", "delta_bias") else x.to(dtype) for name, x in args.items()}
    got, state = selective_scan(**halves, delta_softplus=True, return_last_state=True)
    expected = selective_scan(**{name: x.float() for name, x in halves.items()}, delta_softplus=True)
    assert got.dtype == dtype and state.dtype == torch.float32
    assert torch.equal(got, expected.to(dtype))


def test_autocast_changes_nothing():
    args = call(1, 20, 3, 2, torch.float32)
    expected = selective_scan(**args, delta_softplus=True)  # steps above 0, or states grow without bound
    grads = torch.autograd.grad(expected.square().sum(), list(args.values()))
    with torch.autocast("cpu", torch.bfloat16):
        got = selective_scan(**args, delta_softplus=True)
        cast = torch.autograd.grad(got.square().sum(), list(args.values()))
    assert torch.equal(got, expected) and all(torch.equal(a, b) for a, b in zip(cast, grads, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_to_one_graph(dynamic):
    torch._dynamo.reset()
    args = call(2, 40, 3, 2, torch.float32)
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    results = [(f(**args, delta_softplus=True), list(args.values())) for f in (selective_scan, compiled)]
    grads = [torch.autograd.grad(out.sum(), inputs) for out, inputs in results]
    assert torch.allclose(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(*grads, strict=True))


class Scanned(torch.nn.Module):
    def forward(self, u, delta, A, B, C):
        return selective_scan(u, delta, A, B, C, delta_softplus=True, reverse=True, return_last_state=True)


def test_exports_with_any_batch_and_length():
    args = {name: x.detach() for name, x in call(2, 7, 3, 2).items() if name in ("u", "delta", "A", "B", "C")}
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    shapes = {name: None if name == "A" else free for name in args}
    exported = torch.export.export(Scanned(), (), args, dynamic_shapes=shapes).module()
    for batch, length in [(3, 40), (1, 2)]:
        more = {name: x.detach() for name, x in call(batch, length, 3, 2).items() if name in args}
        got, expected = exported(**more), Scanned()(**more)
        assert all(torch.allclose(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"u": torch.randn(13, 5)}, ValueError, r"u has shape \(13, 5\); it must be \(batch, L, channels\)"),
        ({"u": torch.randn(2, 0, 5)}, ValueError, "with L and channels > 0"),
        ({"A": torch.randn(4, 3)}, ValueError, r"A has shape \(4, 3\); it must be \(5, N\)"),
        ({"delta": torch.randn(2, 12, 5)}, ValueError, r"delta has shape \(2, 12, 5\); it must be \(2, 13, 5\)"),
        ({"B": torch.randn(2, 13, 4)}, ValueError, r"B has shape \(2, 13, 4\); it must be \(2, 13, 3\)"),
        ({"C": torch.randn(13, 3)}, ValueError, "C has shape"),
        ({"D": torch.randn(3)}, ValueError, r"D has shape \(3,\); it must be \(5,\)"),
        ({"z": torch.randn(2, 13)}, ValueError, "z has shape"),
        ({"delta_bias": torch.zeros(5, dtype=torch.int64)}, TypeError, "delta_bias is torch.int64"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_wrong_arguments_are_named(change, error, message):
    with pytest.raises(error, match=message):
        selective_scan(**{**call(), **change})


def test_backends_that_lack_the_op_are_passed_over_unless_asked_for():
    args = call(dtype=torch.float32)
    assert explain(selective_scan, **args).startswith("torch (not triton: it has no selective_scan")
    with use_backend("triton"), pytest.raises(RuntimeError, match="it has no selective_scan"):
        selective_scan(**args)
