# SPDX-License-Identifier: Apache-2.0
"""NATTEN's interface computes what NATTEN computes: both generations, functions and modules; what is missing raises."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import records
import torch
from torch import Tensor, nn

from visionattn.compat import natten
from visionattn.compat.natten import _install, _unfused, _version

Case = dict[str, Any]
OPS = records.FOLDER / "ops"
CASES = records.load(OPS / "neighborhood_attention.json.gz")["cases"]
AV_CASES = records.load(OPS / "neighborhood_av.json.gz")["cases"]


def rank_of(case: Case) -> int:
    return len(case["args"]["kernel_size"])


def function(template: str, case: Case) -> Any:
    return getattr(natten, template.format(rank_of(case)))


def is_unfused(case: Case) -> bool:
    """Whether the releases with separate products can express it: no stride, as many key heads as query heads."""
    i = case["inputs"]
    return set(case["args"]["stride"]) == {1} and i["q"]["shape"][-2] == i["k"]["shape"][-2]


def is_module(case: Case) -> bool:
    """Whether a module can: q, k and v come from one projection, and nothing else."""
    i = case["inputs"]
    return i["q"]["shape"] == i["k"]["shape"] == i["v"]["shape"] and "extra_k" not in i


def inputs(case: Case) -> dict[str, Tensor]:
    return {
        name: records.draw(i["shape"], i["seed_name"], i["scale"]).requires_grad_()
        for name, i in case["inputs"].items()
    }


def check(case: Case, x: dict[str, Tensor], out: Tensor, lse: Tensor | None = None) -> None:
    """Output, log-sum-exp and gradients agree with the record."""
    assert records.error(out, case["outputs"]["out"]) < 1e-9
    if lse is not None and "lse" in case["outputs"]:
        assert records.error(lse, case["outputs"]["lse"]) < 1e-9
    (out * records.cotangent(out.shape)).sum().backward()
    for name, digest in case["grads"].items():
        assert records.error(x[name].grad, digest) < 1e-9, name


def heads_first(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.movedim(-2, 1)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["name"])
def test_fused_functions_agree_with_records(case):
    x, a = inputs(case), case["args"]
    out, lse = function("na{}d", case)(
        x["q"], x["k"], x["v"], kernel_size=a["kernel_size"], stride=a["stride"], dilation=a["dilation"],
        is_causal=a["is_causal"], scale=a["scale"], rpb=x.get("rpb"), additional_keys=x.get("extra_k"),
        additional_values=x.get("extra_v"), return_lse=True, backend="cutlass-fna",
    )  # fmt: skip
    check(case, x, out, lse)


@pytest.mark.parametrize("case", [c for c in CASES if is_unfused(c)], ids=lambda c: c["name"])
def test_unfused_functions_agree_with_records(case):
    x, a = inputs(case), case["args"]
    window = dict(kernel_size=tuple(a["kernel_size"]), dilation=tuple(a["dilation"]), is_causal=tuple(a["is_causal"]))
    scale = x["q"].shape[-1] ** -0.5 if a["scale"] is None else a["scale"]
    logits = function("na{}d_qk", case)(
        heads_first(x["q"]) * scale, heads_first(x["k"]), rpb=x.get("rpb"),
        additional_keys=heads_first(x.get("extra_k")), **window,
    )  # fmt: skip
    out = function("na{}d_av", case)(
        logits.softmax(-1), heads_first(x["v"]), additional_values=heads_first(x.get("extra_v")), **window
    )
    check(case, x, out.movedim(1, -2), logits.logsumexp(-1).movedim(1, -1))


@pytest.mark.parametrize("case", AV_CASES, ids=lambda c: c["name"])
def test_neighbourhood_sum_agrees_with_records(case):
    x = inputs(case)
    attn = x["attn"].softmax(-1).detach().requires_grad_()
    check(case, {"attn": attn, "value": x["value"]}, natten.na2d_av(attn, x["value"], case["args"]["kernel_size"]))


class Given(nn.Module):
    """In place of the qkv projection: what the record has for it."""

    def __init__(self, x: dict[str, Tensor]) -> None:
        super().__init__()
        self.packed = torch.cat([x[name].flatten(-2) for name in "qkv"], -1)

    def forward(self, _: Tensor) -> Tensor:
        return self.packed


@pytest.mark.parametrize("case", [c for c in CASES if is_module(c)], ids=lambda c: c["name"])
def test_modules_agree_with_records(case):
    x, a = inputs(case), case["args"]
    heads, dim = x["q"].shape[-2:]
    common = dict(num_heads=heads, kernel_size=a["kernel_size"], dilation=a["dilation"], is_causal=a["is_causal"],
                  qk_scale=a["scale"])  # fmt: skip
    module_type = function("NeighborhoodAttention{}D", case)
    if set(a["stride"]) == {1}:
        module = module_type(dim=heads * dim, rel_pos_bias="rpb" in x, **common)
    else:
        module = module_type(embed_dim=heads * dim, stride=a["stride"], **common)
    module.qkv, module.proj = Given(x), nn.Identity()
    if "rpb" in x:
        del module.rpb
        module.rpb = x["rpb"]
    out = module(torch.randn(*x["q"].shape[:-2], heads * dim, dtype=torch.float64))
    check(case, x, out.unflatten(-1, (heads, dim)))


@pytest.mark.parametrize("causal", [False, (True, False)])
def test_unfused_gradients_of_first_and_second_order(causal):
    size, kernel, dilation = (5, 6), (2, 3), (2, 1)
    query, key, value = (torch.randn(1, 2, *size, 2, dtype=torch.float64, requires_grad=True) for _ in range(3))
    far_key, far_value = (torch.randn(1, 2, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    rpb = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)

    def attend(query, key, value, far_key, far_value, rpb):
        logits = natten.na2d_qk(query, key, kernel, dilation, rpb=rpb, additional_keys=far_key, is_causal=causal)
        return natten.na2d_av(
            logits.softmax(-1), value, kernel, dilation, additional_values=far_value, is_causal=causal
        )

    x = (query, key, value, far_key, far_value, rpb)
    assert torch.autograd.gradcheck(attend, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(attend, x, fast_mode=True)


def test_a_large_batch_is_read_in_parts_with_the_same_result(monkeypatch):
    attn = torch.randn(3, 2, 7, 9, 15, dtype=torch.float64, requires_grad=True)
    value = torch.randn(3, 2, 7, 9, 3, dtype=torch.float64, requires_grad=True)

    def run() -> list[Tensor]:
        out = natten.na2d_av(attn, value, (3, 5))
        return [out, *torch.autograd.grad(out.square().sum(), (attn, value))]

    at_once = run()
    monkeypatch.setattr(_unfused.tiling, "CHUNK", 1)
    torch.testing.assert_close(run(), at_once, rtol=1e-12, atol=1e-12)


def test_unfused_backward_keeps_no_copy_of_the_keys():
    query, key = (torch.randn(1, 2, 12, 13, 8, requires_grad=True) for _ in range(2))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        natten.na2d_qk(query, key, 5)
    floating = [t.numel() for t in saved if t.is_floating_point()]
    assert sum(floating) == query.numel() + key.numel()


def test_weights_of_hidden_keys_do_not_count():
    attn, value = torch.rand(1, 1, 6, 3, dtype=torch.float64), torch.randn(1, 1, 6, 2, dtype=torch.float64)
    out = natten.na1d_av(attn, value, 3, is_causal=True)
    expected = [sum(attn[0, 0, i, j] * value[0, 0, max(i - 2, 0) + j] for j in range(min(i + 1, 3))) for i in range(6)]
    torch.testing.assert_close(out[0, 0], torch.stack(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_older_names_are_the_same_functions(rank):
    size, kernel = (6, 5, 7)[:rank], (3, 2, 3)[:rank]
    query, key, value = torch.randn(3, 1, 2, *size, 4, dtype=torch.float64).unbind(0)
    table = torch.randn(2, *(2 * n - 1 for n in kernel), dtype=torch.float64)
    get = lambda name: getattr(natten.functional, name.format(rank))  # noqa: E731
    logits = get("na{}d_qk")(query, key, kernel, 2, rpb=table)
    assert torch.equal(get("natten{}dqkrpb")(query, key, table, kernel, 2), logits)
    assert torch.equal(get("na{}d_qk_with_bias")(query, key, bias=table, kernel_size=kernel, dilation=2), logits)
    assert torch.equal(get("natten{}dqk")(query, key, kernel, 2), get("na{}d_qk")(query, key, kernel, 2))
    attn = logits.softmax(-1)
    out = get("natten{}dav")(attn, value, kernel, 2)
    assert torch.equal(out, get("na{}d_av")(attn, value, kernel, 2))
    fused = natten.neighborhood_attention_generic(
        *(x.movedim(1, -2) for x in (query, key, value)), kernel, dilation=2, scale=1.0, rpb=table
    )
    torch.testing.assert_close(out.movedim(1, -2), fused, rtol=1e-10, atol=1e-12)


# --- plain attention and merging --------------------------------------------------------------------------------


def dense(query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> tuple[Tensor, Tensor]:
    groups = query.shape[2] // key.shape[2]
    key, value = (x.repeat_interleave(groups, 2) for x in (key, value))
    logits = torch.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    if causal:
        logits = logits + torch.full(logits.shape[-2:], -math.inf, dtype=logits.dtype).triu(1)
    return torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), value), logits.logsumexp(-1).transpose(1, 2)


@pytest.mark.parametrize(("keys", "causal"), [(7, False), (7, True), (11, False)])
def test_attention_follows_its_definition(keys, causal):
    query = torch.randn(2, 7, 4, 6, dtype=torch.float64, requires_grad=True)
    key = torch.randn(2, keys, 2, 6, dtype=torch.float64, requires_grad=True)
    value = torch.randn(2, keys, 2, 3, dtype=torch.float64, requires_grad=True)
    out, lse = natten.attention(query, key, value, is_causal=causal, return_lse=True)
    expected = dense(query, key, value, causal)
    cotangents = [torch.randn_like(x) for x in expected]
    torch.testing.assert_close((out, lse), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        natten.attention(query, key, value, is_causal=causal), expected[0], rtol=1e-10, atol=1e-12
    )
    torch.testing.assert_close(
        torch.autograd.grad((out, lse), (query, key, value), cotangents),
        torch.autograd.grad(expected, (query, key, value), cotangents),
        rtol=1e-10,
        atol=1e-12,
    )


def test_merged_attentions_are_the_joint_softmax_with_exact_gradients():
    query = torch.randn(2, 5, 2, 4, dtype=torch.float64, requires_grad=True)
    sets = [torch.randn(2, 2, n, 2, 4, dtype=torch.float64, requires_grad=True) for n in (5, 3, 9)]
    parts = [natten.attention(query, key, value, return_lse=True) for key, value in sets]
    merged = natten.merge_attentions(*zip(*parts, strict=True))
    joint = torch.cat(sets, 2)
    expected = dense(query, *joint)
    cotangents = [torch.randn_like(x) for x in expected]
    torch.testing.assert_close(merged, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(merged, (query, *sets), cotangents),
        torch.autograd.grad(expected, (query, *sets), cotangents),
        rtol=1e-10,
        atol=1e-12,
    )


def test_merging_half_precision_counts_in_float32():
    outs = [torch.randn(1, 3, 2, 4, dtype=torch.bfloat16) for _ in range(2)]
    out, lse = natten.merge_attentions(outs, [torch.randn(1, 3, 2) for _ in range(2)])
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)


# --- modules ----------------------------------------------------------------------------------------------------


def test_state_dict_names_are_nattens():
    old = natten.NeighborhoodAttention2D(dim=8, num_heads=2, kernel_size=(3, 5), rel_pos_bias=True)
    shapes = {name: tuple(x.shape) for name, x in old.state_dict().items()}
    assert shapes == {
        "rpb": (2, 5, 9),
        "qkv.weight": (24, 8),
        "qkv.bias": (24,),
        "proj.weight": (8, 8),
        "proj.bias": (8,),
    }
    new = natten.NeighborhoodAttention3D(embed_dim=8, num_heads=2, kernel_size=3, qkv_bias=False)
    assert list(new.state_dict()) == ["qkv.weight", "proj.weight", "proj.bias"]


@pytest.mark.parametrize(("rank", "kernel", "size"), [(1, 7, (4,)), (2, (3, 5), (5, 6)), (3, 3, (2, 7, 5))])
def test_earlier_releases_pad_small_maps_before_the_projection(rank, kernel, size):
    module = getattr(natten, f"NeighborhoodAttention{rank}D")(
        dim=8, num_heads=2, kernel_size=kernel, dilation=2, bias=True
    ).double()
    nn.init.normal_(module.qkv.bias)  # padded keys are the bias
    kernels = (kernel,) * rank if isinstance(kernel, int) else kernel
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    large = torch.zeros(2, *(max(n, 2 * k) for n, k in zip(size, kernels, strict=True)), 8, dtype=torch.float64)
    inside = (slice(None), *(slice(n) for n in size))
    large[inside] = x
    assert large.shape != x.shape
    torch.testing.assert_close(module(x), module(large)[inside], rtol=1e-10, atol=1e-12)


def test_later_releases_refuse_small_maps():
    module = natten.NeighborhoodAttention2D(embed_dim=8, num_heads=2, kernel_size=3, dilation=2)
    with pytest.raises(ValueError, match="kernel_size=3 times dilation=2.*give dim="):
        module(torch.randn(1, 5, 6, 8))


def test_attention_dropout_drops_in_training_only():
    module = natten.NeighborhoodAttention2D(dim=8, num_heads=2, kernel_size=3, bias=True, attn_drop=0.5).double()
    x = torch.randn(1, 6, 7, 8, dtype=torch.float64)
    expected = module.eval()(x)
    module.train()
    assert not torch.equal(module(x), module(x))
    module.attn_drop.p = 1e-9  # the path of separate products, with nothing dropped
    torch.testing.assert_close(module(x), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("attn_drop", [0.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_modules_compile_as_one_graph(attn_drop):
    module = natten.NeighborhoodAttention2D(dim=8, num_heads=2, kernel_size=3, bias=True, attn_drop=attn_drop).double()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 2, 5, 8, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn_like(x)
    results = []
    for run in (compiled, module):
        torch.manual_seed(0)  # the same weights are dropped
        out = run(x)
        results.append((out, *torch.autograd.grad(out, (x, module.rpb), cotangent)))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_compiled_products_and_sums_have_the_same_gradients():
    query, key = torch.randn(2, 1, 2, 5, 6, 4, dtype=torch.float64).requires_grad_().unbind(0)

    def attend(query, key):
        return natten.na2d_av(natten.na2d_qk(query, key, 3, is_causal=True).softmax(-1), key, 3, is_causal=True)

    results = []
    for run in (attend, torch.compile(attend, fullgraph=True, backend="aot_eager")):
        out = run(query, key)
        results.append((out, *torch.autograd.grad(out.square().sum(), (query, key))))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_unfused_half_precision_errs_by_one_rounding(dtype):
    query, key = (torch.randn(1, 2, 6, 7, 16).to(dtype).double().requires_grad_() for _ in range(2))
    halves = [x.detach().to(dtype).requires_grad_() for x in (query, key)]
    for low, exact in (
        (natten.na2d_qk(*halves, 3), natten.na2d_qk(query, key, 3)),
        (
            torch.autograd.grad(natten.na2d_qk(*halves, 3).sum(), halves),
            torch.autograd.grad(natten.na2d_qk(query, key, 3).sum(), (query, key)),
        ),
    ):
        expected = exact.to(dtype) if isinstance(exact, Tensor) else tuple(x.to(dtype) for x in exact)
        torch.testing.assert_close(low, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)


def test_autocast_casts_as_matrix_products_do():
    module = natten.NeighborhoodAttention2D(dim=8, num_heads=2, kernel_size=3, bias=True, attn_drop=0.5)
    x = torch.randn(1, 6, 7, 8)
    query = torch.randn(1, 2, 6, 7, 4)
    with torch.autocast("cpu", torch.bfloat16):
        for mode in (True, False):
            assert module.train(mode)(x).dtype == torch.bfloat16
        logits = natten.na2d_qk(query, query, 3)
        assert logits.dtype == torch.bfloat16
        assert natten.na2d_av(logits.softmax(-1), query, 3).dtype == torch.bfloat16
    out = module.train()(x)
    assert out.dtype == torch.float32


# --- what is not supported --------------------------------------------------------------------------------------


@pytest.fixture
def qkv() -> list[Tensor]:
    return list(torch.randn(3, 1, 6, 7, 2, 4).unbind(0))


def test_unsupported_tensors_are_refused_by_name(qkv):
    q, k, v = qkv
    with pytest.raises(NotImplementedError, match="key is torch.float8_e4m3fn"):
        natten.na2d(q, k.to(torch.float8_e4m3fn), v, 3)
    nested = torch.nested.nested_tensor([torch.randn(5, 2, 4), torch.randn(6, 2, 4)])
    with pytest.raises(NotImplementedError, match="query is a nested tensor"):
        natten.na1d(nested, k, v, 3)
    with pytest.raises(NotImplementedError, match="cumulative_seqlen_Q.*each sequence"):
        natten.attention(q[0], k[0], v[0], cumulative_seqlen_Q=torch.tensor([0, 3, 6]))
    with pytest.raises(NotImplementedError, match="is_causal with 7 queries and 4 keys"):
        natten.attention(q[0], k[0, :, :4], v[0, :, :4], is_causal=True)


def test_wrong_arguments_are_named(qkv):
    q, k, v = qkv
    a, b, c = (x.movedim(-2, 1) for x in qkv)
    wrong = [
        (TypeError, "na2d takes query, key, value, kernel_size by position", lambda: natten.na2d(q, k, v, 3, 2)),
        (TypeError, "kernal_size=3 is no argument", lambda: natten.na2d(q, k, v, 3, kernal_size=3)),
        (ValueError, r"query has shape \(1, 6, 7, 2, 4\); na1d takes", lambda: natten.na1d(q, k, v, 3)),
        (ValueError, "kernel_size=7 exceeds axis 0", lambda: natten.na2d(q, k, v, 7)),
        (ValueError, "kernel_size=3 times dilation=3 exceeds axis 0", lambda: natten.na2d_qk(a, b, 3, 3)),
        (ValueError, r"rpb has shape \(2, 5, 4\); it must be \(2, 5, 5\)",
         lambda: natten.natten2dqkrpb(a, b, torch.randn(2, 5, 4), 3, 1)),
        (ValueError, "attn has shape", lambda: natten.natten2dav(torch.randn(1, 2, 6, 7, 25), c, 3)),
        (ValueError, "additional_keys has shape", lambda: natten.na2d_qk(a, b, 3, additional_keys=a[0])),
        (ValueError, "key has shape", lambda: natten.na2d_qk(a, b[:, :1], 3)),
        (TypeError, "query torch.float32, key torch.float64", lambda: natten.na2d_qk(a, b.double(), 3)),
        (ValueError, "outputs has 1 tensors", lambda: natten.merge_attentions([q], [q[..., 0]])),
        (ValueError, r"lse_tensors\[1\]", lambda: natten.merge_attentions([q, q], [q[..., 0], q])),
        (ValueError, "pref='fast'", lambda: natten.set_memory_usage_preference("fast")),
        (ValueError, "version='0.9.1'", lambda: natten.install("0.9.1")),
        (AttributeError, "no attribute 'profiler'", lambda: natten.profiler),
    ]  # fmt: skip
    for error, message, call in wrong:
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(num_heads=2, kernel_size=3), TypeError, "embed_dim=None and dim=None"),
        (dict(embed_dim=8, dim=8, num_heads=2, kernel_size=3), TypeError, "embed_dim=8 and dim=8 are two names"),
        (dict(dim=8, num_heads=2), TypeError, "kernel_size=None"),
        (dict(dim=8, num_heads=3, kernel_size=3), ValueError, "num_heads=3 must be a positive divisor of the 8"),
        (dict(dim=8, num_heads=2, kernel_size=3, stride=2), ValueError, "stride=2 came with NATTEN 0.20"),
        (dict(dim=8, num_heads=2, kernel_size=3, bias=True, rel_pos_bias=True), TypeError, "two names"),
        (dict(dim=8, num_heads=2, kernel_size=(3, 3, 3)), ValueError, "kernel_size"),
        (dict(dim=8, num_heads=2, kernel_size=3, kernel=3), TypeError, "kernel"),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_wrong_module_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        natten.NeighborhoodAttention2D(**arguments)


def test_switches_are_accepted_and_questions_answered_truthfully():
    natten.use_fused_na(True)
    natten.use_kv_parallelism_in_fused_na(True)
    natten.use_autotuner(forward_pass=True, backward_pass=True)
    natten.set_memory_usage_preference("unrestricted")
    assert natten.has_cuda() == torch.cuda.is_available()
    assert natten.has_fused_na() and natten.has_bfloat() and not natten.has_gemm() and not natten.HAS_LIBNATTEN
    assert natten.context.is_fna_enabled() and not natten.is_autotuner_enabled()
    assert natten.get_memory_usage_preference() == "default"


# --- install ----------------------------------------------------------------------------------------------------


@pytest.fixture
def released():
    """Nothing of `install` outlives a test."""
    yield
    _install._uninstall()


@pytest.mark.parametrize(
    ("version", "pads", "table"), [("0.14.6", True, True), ("0.17.5", True, False), ("0.21.6", False, False)]
)
def test_the_release_decides_where_arguments_leave_it_open(version, pads, table, released):
    assert natten.install(version)
    import natten as found  # type: ignore[import-not-found]

    assert found is natten and found.__version__ == version
    module = found.NeighborhoodAttention2D(8, 2, 3)
    assert (module.pads, module.rpb is not None) == (pads, table)
    explicit = found.NeighborhoodAttention2D(dim=8, num_heads=2, kernel_size=3, bias=True)
    assert explicit.pads and explicit.rpb is not None


def test_uninstalling_leaves_nothing(released):
    natten.install("0.17.5")
    _install._uninstall()
    assert "natten" not in sys.modules and _version.current == natten.__version__ == _version.NEWEST
    assert _install._finder not in sys.meta_path


def in_new_interpreter(code: str, path: Path | None = None) -> str:
    where = {} if path is None else {"PYTHONPATH": str(path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **where})
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_real_natten_is_left_alone(tmp_path):
    (tmp_path / "natten").mkdir()
    (tmp_path / "natten" / "__init__.py").write_text("__version__ = 'real'\n")
    code = """
from visionattn.compat.natten import install
print(install(), install("0.17.5"))
import natten
print(install(), natten.__version__)
"""
    repository = Path(natten.__file__).parents[3]
    assert in_new_interpreter(f"import sys; sys.path.insert(0, {str(repository)!r})\n{code}", tmp_path).split() == [
        "False", "False", "False", "real"]  # fmt: skip


def test_code_of_both_generations_runs_on_what_is_installed():
    """As people write it: transformers' DiNAT, k-diffusion, the NAT authors' switch on the release, 0.20's README."""
    code = """
import importlib.metadata, importlib.util
from visionattn.compat.natten import install
assert install("0.17.5") and install("0.17.5")

assert importlib.util.find_spec("natten") and importlib.metadata.version("natten") == "0.17.5"
import torch, natten, natten.functional
from torch import nn
from natten.functional import natten2dav, natten2dqkrpb
from natten import NeighborhoodAttention2D as NeighborhoodAttention
assert natten.functional.natten2dav is natten2dav

scores = natten2dqkrpb(torch.randn(1, 2, 6, 7, 4), torch.randn(1, 2, 6, 7, 4), torch.randn(2, 5, 5), 3, 2)
context = natten2dav(nn.functional.softmax(scores, dim=-1), torch.randn(1, 2, 6, 7, 4), 3, 2)
assert context.shape == (1, 2, 6, 7, 4)

class NATLayer(nn.Module):
    def __init__(self, dim, num_heads, kernel_size=7, dilation=None):
        super().__init__()
        extra = {"rel_pos_bias": True} if hasattr(natten, "context") else {"bias": True}
        self.norm = nn.LayerNorm(dim)
        self.attn = NeighborhoodAttention(dim, kernel_size=kernel_size, dilation=dilation, num_heads=num_heads,
                                          qkv_bias=True, qk_scale=None, attn_drop=0.0, proj_drop=0.0, **extra)

    def forward(self, x):
        return x + self.attn(self.norm(x))

layer = NATLayer(8, 2)
assert layer(torch.randn(1, 5, 9, 8)).shape == (1, 5, 9, 8) and layer.attn.rpb.shape == (2, 13, 13)

q, k, v = torch.randn(3, 1, 8, 9, 2, 4).unbind(0)
if natten.has_fused_na():
    x = natten.functional.na2d(q, k, v, 3, scale=1.0)
    y = natten.functional.na2d_qk(q.movedim(-2, 1), k.movedim(-2, 1), 3).softmax(-1)
    y = natten.functional.na2d_av(y, v.movedim(-2, 1), 3).movedim(1, -2)
    torch.testing.assert_close(x, y)

from natten import na3d, merge_attentions, NeighborhoodAttention3D
volume = torch.randn(1, 4, 5, 6, 2, 4)
assert na3d(volume, volume, volume, kernel_size=(2, 3, 3), stride=(1, 2, 1), is_causal=(True, False, False),
            q_tile_shape=(2, 4, 8), run_persistent_kernel=True).shape == volume.shape
print(NeighborhoodAttention3D(embed_dim=8, num_heads=2, kernel_size=3, stride=1)(torch.randn(1, 4, 5, 6, 8)).shape[-1])
"""
    assert in_new_interpreter(code).strip() == "8"
