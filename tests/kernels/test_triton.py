# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels, in the interpreter where there is no GPU: equal to the torch path, every element written."""

import itertools
import random

import interpreter
import pytest
import torch
from test_local import CALLS, split, tensors
from torch.utils.checkpoint import checkpoint

from visionattn.kernels import (
    LocalPattern,
    explain,
    halo_attention,
    local_attention,
    local_triton,
    neighborhood_attention,
    tiles,
    use_backend,
    window_attention,
)

pytest.importorskip("triton")
interpreter.prepare()

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def triton():
    with use_backend("triton"):
        yield


@pytest.fixture(autouse=True)
def poisoned():
    """Memory that nobody has written is NaN, so that an element left out is found."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def packed(*size, batch=1, heads=2, dim=16, dtype=torch.float32):
    return torch.randn(batch, *size, 3, heads, dim, dtype=dtype, device=DEVICE)


def results(call, inputs, backend, dtype=None):
    """Output, log-sum-exp and the gradients of all inputs."""
    leaves = {n: t.detach().to(DEVICE, dtype or t.dtype).requires_grad_() for n, t in inputs.items()}
    with use_backend(backend):
        out, lse = call(leaves)
        wave = torch.linspace(-1, 1, out.numel(), device=DEVICE).view_as(out)
        grads = torch.autograd.grad((out * wave).sum() + lse.sin().sum(), leaves.values(), allow_unused=True)
    named = {"out": out, "lse": lse, **dict(zip(leaves, grads, strict=True))}
    return {n: t.detach().double() for n, t in named.items() if t is not None}


def assert_equal_to_torch(call, inputs, dtype=torch.float32):
    exact = results(call, inputs, "torch", torch.float64)
    ours = results(call, inputs, "triton", dtype)
    assert ours.keys() == exact.keys()
    # Sums of a few hundred float32 numbers; in half precision inputs, weights and gradients are rounded too.
    tolerance = {torch.float32: 3e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    for name, value in ours.items():
        assert (value - exact[name]).abs().max() <= tolerance * exact[name].abs().max().clamp_min(1e-3), name


# --- agreement -------------------------------------------------------------------------------------------------------


# Seconds to half a minute each in the interpreter; of these one dtype by default.
COSTLY = {(name, dtype) for name in ("halo", "window") for dtype in (torch.bfloat16, torch.float16)} - {
    ("window", torch.bfloat16)
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, id=f"{name}-{dtype}", marks=[pytest.mark.slow] if (name, dtype) in COSTLY else [])
        for name in CALLS
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    ],
)
def test_agrees_with_the_torch_path(name, dtype):
    values = {n: t.detach() for n, t in tensors(batch=1).items()}
    inputs = {"qkv": packed(7, 8, dim=6).double(), **values}

    def call(t):
        return CALLS[name](*split(t["qkv"]), t)

    assert_equal_to_torch(call, inputs, dtype)


LARGE = ("3d", "halo-larger-than-block", "strided", "even-dilated")  # half a minute each in the interpreter
GEOMETRIES = {
    "1d": ((37,), dict(kernel_size=8, dilation=2)),
    "1d-causal-strided": ((23,), dict(kernel_size=6, stride=4, causal=True)),
    "strided": ((9, 11), dict(kernel_size=(4, 5), stride=(2, 3))),
    "block-sparse": ((8, 16), dict(kernel_size=8, stride=4)),
    "even-dilated": ((11, 8), dict(kernel_size=(4, 3), dilation=(2, 1))),
    "full": ((4, 5), dict(kernel_size=(4, 5))),
    "3d": ((4, 5, 6), dict(kernel_size=(3, 3, 2), causal=(True, False, False), dilation=(1, 1, 2))),
    "one-pixel": ((1, 1), dict(kernel_size=1)),
    "one-row": ((1, 13), dict(kernel_size=(1, 5))),
    "windows-3d": ((3, 6, 5), dict(kernel_size=(2, 4, 4), stride=(2, 4, 4), boundary="pad", shift=(1, 2, 0))),
    "halo-larger-than-block": ((7, 5), dict(kernel_size=8, stride=2, boundary="pad")),
}


@pytest.mark.parametrize(
    ("size", "fields"),
    [
        pytest.param(*case, id=name, marks=[pytest.mark.slow] if name in LARGE else [])
        for name, case in GEOMETRIES.items()
    ],
)
def test_any_geometry(size, fields):
    pattern = LocalPattern(**fields)
    tables = [2 * axis.kernel_size - 1 for axis in pattern.axes(len(size))]
    inputs = {"qkv": packed(*size, dim=8).double(), "bias": torch.randn(2, *tables, dtype=torch.float64)}

    def call(t):
        return local_attention(*split(t["qkv"]), pattern, bias=t["bias"], scale=-0.4, return_lse=True)

    assert_equal_to_torch(call, inputs)


def test_grouped_heads_wide_values_extra_keys_and_pads():
    """Query heads share keys, values have another width, and a batch of two has its own extra keys."""
    inputs = {
        "q": torch.randn(2, 5, 4, 4, 8), "k": torch.randn(2, 5, 4, 2, 8), "v": torch.randn(2, 5, 4, 2, 20),
        "extra_k": torch.randn(2, 35, 2, 8), "extra_v": torch.randn(2, 35, 2, 20),
        "pad_k": torch.randn(2, 8), "pad_v": torch.randn(2, 20),
    }  # fmt: skip

    def call(t):
        return window_attention(
            t["q"], t["k"], t["v"], 3, shift=1, extra_k=t["extra_k"], extra_v=t["extra_v"], pad_k=t["pad_k"],
            pad_v=t["pad_v"], return_lse=True,
        )  # fmt: skip

    assert_equal_to_torch(call, {n: t.double() for n, t in inputs.items()})


def test_halo_with_strided_queries_and_pads_in_the_halo():
    inputs = {"q": torch.randn(1, 3, 4, 2, 8), "k": torch.randn(1, 6, 8, 2, 8), "v": torch.randn(1, 6, 8, 2, 8),
              "pad_k": torch.randn(2, 8), "pad_v": torch.randn(2, 8), "bias": torch.randn(2, 15, 15)}  # fmt: skip
    pattern = LocalPattern(8, 4, boundary="pad", query_stride=2)

    def call(t):
        return local_attention(
            t["q"], t["k"], t["v"], pattern, bias=t["bias"], pad_k=t["pad_k"], pad_v=t["pad_v"], return_lse=True
        )

    assert_equal_to_torch(call, {n: t.double() for n, t in inputs.items()})


@pytest.mark.parametrize("dim", [8, 24, 40, pytest.param(160, marks=pytest.mark.slow), 256])
def test_head_dims(dim):
    def call(t):
        return neighborhood_attention(*split(t["qkv"]), 3, return_lse=True)

    assert_equal_to_torch(call, {"qkv": packed(4, 5, heads=1, dim=dim).double()})


def strided_views():
    """q, k and v as users have them: transposed, expanded, sliced, and not contiguous in the last axis."""
    q = torch.randn(1, 2, 5, 6, 8).permute(0, 2, 3, 1, 4)
    k = torch.randn(1, 5, 6, 1, 8).expand(-1, -1, -1, 2, -1)
    v = torch.randn(1, 5, 12, 2, 8)[:, :, ::2]
    return {"q": q, "k": k, "v": v}, {"q": torch.randn(1, 5, 6, 8, 2).transpose(-1, -2), "k": q, "v": v}


@pytest.mark.parametrize("views", strided_views(), ids=["views", "columns"])
def test_strides_are_honoured(views):
    exact = [neighborhood_attention(*(t.contiguous().to(DEVICE) for t in views.values()), 3) for _ in range(1)][0]
    with use_backend("torch"):
        expected = neighborhood_attention(*(t.to(DEVICE) for t in views.values()), 3)
    torch.testing.assert_close(neighborhood_attention(*(t.to(DEVICE) for t in views.values()), 3), expected)
    torch.testing.assert_close(exact, expected)


def any_tiling(problem, chooser):
    """A tiling drawn from everything that the model considers, as other devices and measurements may choose it."""
    kernels = {}
    for name, of_keys, backward in (
        ("forward", False, False),
        ("backward_query", False, True),
        ("backward_key", True, True),
    ):
        candidates = list(tiles._candidates(problem, of_keys, backward, tiles.DEVICES["sm_90"]))
        few = [c for c in candidates if c.rows * c.columns <= 2048 and tiles.walk(problem, c, of_keys)[1] <= 40]
        kernels[name] = chooser.choice(few or candidates)
    return tiles.Tiling(**kernels, fused=tiles.can_fuse(problem, kernels["backward_query"]))


TILED = {
    "neighborhood": (LocalPattern(5), (9, 10)),
    "dilated-causal": (LocalPattern(3, dilation=(2, 3), causal=(False, True)), (9, 10)),
    "strided": (LocalPattern(6, 2), (10, 8)),
    "shifted-windows": (LocalPattern(4, 4, boundary="pad", shift=(1, 2)), (7, 8)),
    "halo": (LocalPattern(6, 4, boundary="pad"), (8, 7)),
    "3d": (LocalPattern((2, 3, 3)), (3, 5, 4)),
    "1d": (LocalPattern(9, 3), (31,)),
}


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 6))])
@pytest.mark.parametrize("name", TILED)
def test_tiles_do_not_change_the_result(name, seed, monkeypatch):
    pattern, size = TILED[name]
    chooser = random.Random(f"{name}{seed}")
    monkeypatch.setattr(local_triton, "tiles", lambda problem, device: any_tiling(tiles.canonical(problem), chooser))
    local_triton._geometry.cache_clear()
    tables = [2 * axis.kernel_size - 1 for axis in pattern.axes(len(size))]
    inputs = {"qkv": packed(*size, heads=1, dim=8).double(), "bias": torch.randn(1, *tables, dtype=torch.float64)}

    def call(t):
        return local_attention(*split(t["qkv"]), pattern, bias=t["bias"], return_lse=True)

    assert_equal_to_torch(call, inputs)
    local_triton._geometry.cache_clear()


@pytest.mark.parametrize(
    "device", [d if d == "sm_90" else pytest.param(d, marks=pytest.mark.slow) for d in tiles.DEVICES]
)
def test_every_devices_tiles_agree(device, monkeypatch):
    monkeypatch.setattr(local_triton, "device_of", lambda _: tiles.DEVICES[device])
    local_triton._geometry.cache_clear()

    def call(t):
        return window_attention(*split(t["qkv"]), 3, shift=1, bias=t["bias"], return_lse=True)

    inputs = {"qkv": packed(5, 7, dim=8).double(), "bias": torch.randn(2, 5, 5, dtype=torch.float64)}
    assert_equal_to_torch(call, inputs)


def test_offsets_beyond_32_bits_are_computed_in_64():
    """The same map, its rows so far apart in memory that products of positions and strides need 64 bits."""
    qkv = packed(3, 4, heads=1, dim=8)
    q, k, v = split(qkv)
    plan_of = local_triton.plan_of
    wide = []

    def widened(call, pattern, device):
        plan = plan_of(call, pattern, device)
        wide.append(plan.shared["WIDE"])
        return plan._replace(shared={**plan.shared, "WIDE": 1})

    expected = neighborhood_attention(q, k, v, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_triton, "plan_of", widened)
        torch.testing.assert_close(neighborhood_attention(q, k, v, 3), expected)
        loss = neighborhood_attention(*split(qkv.requires_grad_()), 3).square().sum()
        grad = torch.autograd.grad(loss, qkv)[0]
    assert wide == [0, 0, 0]
    torch.testing.assert_close(grad, torch.autograd.grad(neighborhood_attention(*split(qkv), 3).square().sum(), qkv)[0])
    far = torch.empty(1, 4096, 4096, 1, 200, device="meta")
    assert local_triton._wide(far) and not local_triton._wide(q)


# --- autograd and tracers --------------------------------------------------------------------------------------------


def test_backward_is_deterministic():
    qkv = packed(6, 7).requires_grad_()
    bias = torch.randn(2, 5, 5, device=DEVICE, requires_grad=True)

    def gradients():
        return torch.autograd.grad(neighborhood_attention(*split(qkv), 3, bias=bias).square().sum(), (qkv, bias))

    for first, second in zip(gradients(), gradients(), strict=True):
        assert torch.equal(first, second)


def test_second_derivatives_take_the_torch_path():
    qkv = packed(4, 3, dim=8).requires_grad_()

    def penalty(backend):
        with use_backend(backend):
            out = neighborhood_attention(*split(qkv), 3)
            (grad,) = torch.autograd.grad(out.sin().sum(), qkv, create_graph=True)
            return torch.autograd.grad(grad.square().sum(), qkv)[0]

    torch.testing.assert_close(penalty("triton"), penalty("torch"), rtol=1e-3, atol=1e-4)


def test_only_wanted_gradients_are_returned():
    q, k, v = (t.detach() for t in split(packed(4, 5)))
    k.requires_grad_()
    out = neighborhood_attention(q, k, v, 3, bias=torch.randn(2, 5, 5, device=DEVICE))
    assert torch.autograd.grad(out.sum(), k)[0].abs().sum() > 0
    assert not neighborhood_attention(q, k.detach(), v, 3).requires_grad


def test_empty_batch():
    qkv = packed(5, 6, batch=0).requires_grad_()
    out = neighborhood_attention(*split(qkv), 3)
    assert out.shape == (0, 5, 6, 2, 16)
    out.sum().backward()
    assert qkv.grad.shape == qkv.shape


def test_compile_traces_the_kernels_as_one_op():
    qkv = packed(5, 6, dim=8).requires_grad_()
    bias = torch.randn(2, 5, 5, device=DEVICE, requires_grad=True)

    def model(qkv, bias):
        return window_attention(*split(qkv * 2), 3, shift=1, bias=bias).tanh().sum()

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for one, two in zip(*(torch.autograd.grad(f(qkv, bias), (qkv, bias)) for f in (model, compiled)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_ops_pass_torchs_own_checks():
    q, k, v = (t.detach().requires_grad_() for t in split(packed(3, 4, dim=8)))
    bias = torch.randn(2, 5, 5, device=DEVICE, requires_grad=True)
    there = [True] * 4 + [False] * 4
    arguments = ([q, k, v, bias], there, local_triton._numbers(LocalPattern(3), 2), False, 0.3, False)
    torch.library.opcheck(
        local_triton._op, arguments, test_utils=("test_schema", "test_faketensor", "test_autograd_registration")
    )


def test_checkpoint_and_autocast():
    qkv = packed(4, 5, dim=8).requires_grad_()

    def attend(x):
        return neighborhood_attention(*split(x * 1.0), 3)

    plain = torch.autograd.grad(attend(qkv).square().sum(), qkv)[0]
    again = torch.autograd.grad(checkpoint(attend, qkv, use_reentrant=False).square().sum(), qkv)[0]
    torch.testing.assert_close(plain, again)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert attend(qkv).dtype == torch.bfloat16


def test_export_holds_plain_ops():
    """An exported program has to run without Triton; there the choice of a backend has no say."""

    class Attend(torch.nn.Module):
        def forward(self, x):
            return neighborhood_attention(*x.unbind(-3), 3)

    qkv = packed(5, 6, dim=8)
    with use_backend("auto"):
        program = torch.export.export(Attend(), (qkv,))
    assert not any("visionattn" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(qkv), neighborhood_attention(*split(qkv), 3))


# --- refusals --------------------------------------------------------------------------------------------------------


def test_what_the_kernels_do_not_take_is_refused_or_explained():
    q, k, v = split(packed(5, 6, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="'triton' was asked for, but the kernels take float16.*not float64"):
        neighborhood_attention(q, k, v, 3)
    q, k, v = split(packed(5, 6, dim=272))
    with pytest.raises(RuntimeError, match="head_dim=272 and v_head_dim=272 must be at most 256"):
        neighborhood_attention(q, k, v, 3)
    with use_backend("auto"):
        assert explain(neighborhood_attention, q, k, v, 3).startswith("torch (not triton: ")
    assert explain(halo_attention, *split(packed(8, 8)), 4, 1) == "triton (asked for)"


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU runs the kernels by itself")
def test_the_interpreter_runs_only_if_asked_for():
    with use_backend("auto"):
        said = explain(neighborhood_attention, *split(packed(5, 6)), 3)
    assert said == "torch (not triton: the interpreter is slow and runs only if asked for)"


def test_wrong_shapes_raise_before_any_launch(monkeypatch):
    monkeypatch.setattr(local_triton.Launch, "run", lambda self: pytest.fail("launched"))
    q, k, v = split(packed(5, 6))
    for bias, match in ((torch.zeros(2, 3, 3), "bias has shape"), (torch.zeros(3, 5, 5), "bias has shape")):
        with pytest.raises(ValueError, match=match):
            neighborhood_attention(q, k, v, 3, bias=bias)
    for axis, kernel in itertools.product((0, 1), (8,)):
        with pytest.raises(ValueError, match=f"kernel_size=8 exceeds axis {axis}"):
            neighborhood_attention(q, k, v, (kernel, 1) if axis == 0 else (1, kernel))


@pytest.mark.parametrize("spills", [0, 3])
def test_a_kernel_that_spills_is_compiled_again_with_all_registers(spills, monkeypatch):
    """A stand-in for the compiler: what it says of a kernel decides, once, about all launches of that kernel."""
    asked, launched = [], []

    class Kernel:
        n_spills = spills

        def warmup(self, *arguments, grid, **options):
            asked.append(options)
            return self

        def _init_handles(self):
            pass

        def __getitem__(self, grid):
            return lambda *arguments, **options: launched.append(options)

    monkeypatch.setattr(local_triton, "interpreted", lambda: False)
    monkeypatch.setattr(local_triton, "_SPILLING", {})
    monkeypatch.setattr("visionattn.kernels._triton_kernels.forward", Kernel())
    launch = local_triton.Launch("forward", (1,), (torch.randn(1),), {"BM": 16}, 4, 2)
    launch.run()
    launch.run()
    assert asked == [{"BM": 16, "num_warps": 4, "num_stages": 2}]
    more = {"maxnreg": 255} if spills else {}
    assert launched == [{"BM": 16, "num_warps": 4, "num_stages": 2, **more}] * 2
