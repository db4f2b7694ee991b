# SPDX-License-Identifier: Apache-2.0
"""Local attention on Triton kernels: what they are given, how many programs run, and how autograd sees them.

Nothing here touches numbers: `_triton_kernels` does. Tensors are read through their strides; results are contiguous.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from visionattn.kernels import dispatch
from visionattn.kernels.local_torch import Inputs, Options, differentiable_gradients
from visionattn.kernels.pattern import LocalPattern, ceil_div
from visionattn.kernels.tiles import (
    Device,
    LocalProblem,
    Tile,
    Tiling,
    device_of,
    extents,
    power_of_two,
    three_axes,
    tiles,
)

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
HEAD_DIMS = (1, 256)
ALL_REGISTERS = {"maxnreg": 255}
EXTRA_SPLITS = 16  # parts of an image whose sums make the gradient of extra keys


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on any device."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def supports(problem: dispatch.Problem) -> str | None:
    """Why the kernels can't run a call, or None."""
    if problem.device != "cuda" and not interpreted():
        return f"the tensors are on {problem.device!r}, not on a CUDA or ROCm device"
    if problem.device not in ("cuda", "cpu"):
        return f"the tensors are on {problem.device!r}"
    if problem.device == "cpu" and not dispatch.is_asked_for("triton"):
        return "the interpreter is slow and runs only if asked for"
    if problem.dtype not in DTYPES:
        return f"the kernels take float16, bfloat16 and float32, not {str(problem.dtype).removeprefix('torch.')}"
    if not all(HEAD_DIMS[0] <= width <= HEAD_DIMS[1] for width in (problem.head_dim, problem.v_head_dim)):
        return f"head_dim={problem.head_dim} and v_head_dim={problem.v_head_dim} must be at most {HEAD_DIMS[1]}"
    wide = problem.dtype == torch.float32 and max(problem.head_dim, problem.v_head_dim) > 128
    if torch.version.hip and wide:
        return "head dims above 128 in float32 do not fit the on-chip memory of ROCm devices"
    if torch.compiler.is_exporting():
        return "exported graphs hold plain PyTorch ops"
    return None


# --- launches --------------------------------------------------------------------------------------------------------


class Call(NamedTuple):
    """What the kernels take: relative logits instead of their tables, and three spatial axes."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    rel: Tensor | None
    extra_k: Tensor | None
    extra_v: Tensor | None
    pad_k: Tensor | None
    pad_v: Tensor | None


class Plan(NamedTuple):
    """The parts of a launch that shapes decide."""

    tiling: Tiling
    device: Device
    problem: LocalProblem
    pattern: tuple[int, ...]
    query_size: tuple[int, int, int]
    key_size: tuple[int, int, int]
    shared: dict[str, Any]


class Launch(NamedTuple):
    """One kernel launch: everything that the compiler and the driver are told."""

    kernel: str
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int]:
        """What the compiler is told besides constants."""
        return {"num_warps": self.warps, "num_stages": self.stages}

    def run(self) -> None:
        """Launch it on the current device."""
        from visionattn.kernels import _triton_kernels

        kernel = getattr(_triton_kernels, self.kernel)
        kernel[self.grid](*self.arguments, **self.constants, **self.options, **self._registers(kernel))

    def _registers(self, kernel: Any) -> dict[str, int]:
        """Lifts the limit that NVIDIA's assembler sets itself to fit more programs, where it spills for that."""
        if interpreted() or torch.version.hip:
            return {}
        key = (*self[:1], *self[4:], self.arguments[0].dtype, frozenset(self.constants.items()))
        if key not in _SPILLING:
            compiled = kernel.warmup(*self.arguments, **self.constants, **self.options, grid=self.grid)
            compiled._init_handles()  # learns of registers and spills
            _SPILLING[key] = bool(compiled.n_spills)
        return ALL_REGISTERS if _SPILLING[key] else {}


# Whether a kernel spills registers if the assembler is left to itself.
_SPILLING: dict[tuple[Any, ...], bool] = {}


def _window(x: Tensor) -> tuple[int, ...]:
    """Strides (B, three axes, heads) of (B, *spatial, heads, D)."""
    strides = x.stride()
    return (strides[0], *(0,) * (6 - x.ndim), *strides[1:-1])


def _three(size: Sequence[int]) -> tuple[int, int, int]:
    return (1,) * (3 - len(size)) + tuple(size)  # type: ignore[return-value]


@lru_cache(maxsize=1024)
def _geometry(
    pattern: LocalPattern, query_size: tuple[int, ...], key_size: tuple[int, ...], widths: tuple[int, int], size: int,
    bias: bool, relative: bool, device: Device,
) -> tuple[Tiling, tuple[int, ...], LocalProblem]:  # fmt: skip
    problem = LocalProblem(pattern, query_size, key_size, *widths, size, bias, relative)
    axes, _ = three_axes(problem)
    numbers: list[int] = []
    for a in axes:
        pad = a.boundary == "pad"
        halo = (a.kernel_size - a.stride) // 2 if pad else 0
        numbers += [a.kernel_size, a.stride, a.dilation, int(a.causal), int(pad), a.block, halo, a.shift]
    return tiles(problem, device), tuple(numbers), problem


def _axis(pattern: tuple[int, ...], a: int) -> tuple[int, ...]:
    """The kernels' eight numbers of an axis."""
    return pattern[8 * a : 8 * a + 8]


def _flags(pattern: tuple[int, ...], tile: Tile, of_keys: bool, relative: bool) -> dict[str, Any]:
    """Which masks a kernel needs, known from pattern and tile alone."""
    full, always, reach = [], True, True
    for a in range(3):
        kernel, stride, _, causal, pad, _, halo, _ = _axis(pattern, a)
        side, box = tile.tile[a], tile.box[a]
        if of_keys:
            alone = bool(pad and halo == 0) or (kernel == 1 and stride == 1 and not causal)
        else:
            alone = not causal and (bool(pad) or stride % side == 0)
        full.append(int(not alone))
        always &= alone and kernel % box == 0
        spread = max(side - stride, 0) + box - 1
        reach &= alone or kernel > spread
    exact = always and math.prod(tile.box) % (tile.rows if of_keys else tile.columns) == 0
    return {
        "FULL": tuple(full),
        "ANY_FULL": int(any(full)),
        "EXACT": int(exact and not of_keys),
        # Boxes that all queries of a tile see need no mask: worth a test only where there are such boxes.
        "DYNAMIC": int(any(full) and reach and tile.pieces == 1 and not relative),
    }


def _wide(*tensors: Tensor | None) -> bool:
    """Whether offsets inside an image, or rows of all images, exceed 32 bits."""
    reach = 0
    for x in tensors:
        if x is not None and x.numel():
            reach = max(reach, sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)), x.numel())
    return reach >= 2**31 - 2**16


def plan_of(call: Call, pattern: LocalPattern, device: Device) -> Plan:
    """What the shapes of a call decide about its launches."""
    q, k, v = call.q, call.k, call.v
    tiling, numbers, problem = _geometry(
        pattern, tuple(q.shape[1:-2]), tuple(k.shape[1:-2]), (q.shape[-1], v.shape[-1]), q.element_size(),
        call.bias is not None, call.rel is not None, device,
    )  # fmt: skip
    padded = [numbers[8 * a + 4] for a in range(3)]
    halo = any(numbers[8 * a + 6] for a in range(3))
    key_size = _three(k.shape[1:-2])
    ragged = any(
        pad and length % numbers[8 * a + 1] for a, (pad, length) in enumerate(zip(padded, key_size, strict=True))
    )
    matmul_tf32 = torch.backends.cuda.matmul.allow_tf32 and q.dtype == torch.float32
    shared = {
        "P": numbers,
        "SEAMS": int(any(numbers[8 * a + 7] for a in range(3))),
        "BIAS": int(call.bias is not None),
        "REL": int(call.rel is not None),
        "HOLES": int(bool(padded[0]) and (halo or ragged)),
        "FILL": int(call.pad_k is not None),
        "WIDE": int(_wide(q, k, v, call.rel)),
        "HEADS": q.shape[-2],
        "GROUP": q.shape[-2] // k.shape[-2],
        "D": q.shape[-1],
        "DV": v.shape[-1],
        "BD": power_of_two(max(q.shape[-1], 16)),
        "BDV": power_of_two(max(v.shape[-1], 16)),
        "PRECISION": "tf32" if matmul_tf32 else "ieee",
    }
    return Plan(tiling, device, problem, numbers, _three(q.shape[1:-2]), key_size, shared)


def _counts(plan: Plan, tile: Tile, of_keys: bool = False, extend: bool = False) -> tuple[int, int, int]:
    """Tiles along each axis."""
    counts = []
    for a, length in enumerate(plan.key_size):
        _, stride, dilation, _, pad, block, halo, _ = _axis(plan.pattern, a)
        side = tile.tile[a]
        if pad:
            parts = ceil_div(stride if of_keys else block, side)
            counts.append((ceil_div(length, stride) + 2 * ceil_div(halo, stride) * extend) * parts)
        else:
            counts.append(dilation * ceil_div(ceil_div(length, dilation), side))
    return tuple(counts)  # type: ignore[return-value]


def _walk_flags(plan: Plan, tile: Tile, backward: bool) -> dict[str, Any]:
    """Flags of the kernels that own queries."""
    single = tile.pieces == 1 and all(
        (_axis(plan.pattern, a)[4] or plan.key_size[a] == 1) and _axis(plan.pattern, a)[0] <= tile.box[a]
        for a in range(3)
    )
    whole = single and all(_axis(plan.pattern, a)[5] == tile.tile[a] and _axis(plan.pattern, a)[4] for a in range(3))
    # Where operands take registers, none are left to keep a bias and its gradient from window to window.
    whole &= not backward or plan.device.from_shared or plan.problem.element_bytes == 4
    return {
        "T": tile.tile, "BOX": tile.box, "SUB": tile.pieces, "BM": tile.rows, "BN": tile.columns, "SINGLE": int(single),
        "UNIFORM": int(whole), **_flags(plan.pattern, tile, False, plan.problem.relative),
    }  # fmt: skip


def _share(items: int, heads: int, device: Device, most: int) -> int:
    """Tiles that a program takes, one after the other, while every processor keeps several programs."""
    return max(1, min(most, items * heads // (8 * device.processors)))


def forward_launch(call: Call, plan: Plan, scale: float, out: Tensor, lse: Tensor, with_lse: bool) -> Launch:
    """The launch that fills out, and lse if asked for."""
    q = call.q
    tile = plan.tiling.forward
    flags = _walk_flags(plan, tile, backward=False)
    counts = _counts(plan, tile)
    items = math.prod(counts) * q.shape[0]
    share = _share(items, q.shape[-2], plan.device, 8) if flags["UNIFORM"] and call.bias is not None else 1
    extra = 0 if call.extra_k is None else call.extra_k.shape[1]
    arguments = (
        q, call.k, call.v, out, lse, *_pointers(call), *_strides(call), plan.query_size, plan.key_size, counts, items,
        share, extra, scale * math.log2(math.e),
    )  # fmt: skip
    constants = {**plan.shared, **flags, "EXTRA": int(extra > 0), "LSE": int(with_lse)}
    return Launch("forward", (ceil_div(items, share) * q.shape[-2],), arguments, constants, tile.warps, tile.stages)


def run_forward(call: Call, pattern: LocalPattern, scale: float, with_lse: bool) -> tuple[Tensor, Tensor]:
    """Output (B, *spatial, heads, v_dim), and the log-sum-exp (B, *spatial, heads) in float32, empty if not wanted."""
    q = call.q
    out = q.new_empty(*q.shape[:-1], call.v.shape[-1])
    lse = torch.empty(q.shape[:-1] if with_lse else (0,), dtype=torch.float32, device=q.device)
    if q.shape[0]:
        with torch.cuda.device_of(q):
            forward_launch(call, plan_of(call, pattern, device_of(q.device)), scale, out, lse, with_lse).run()
    return out, lse


def _pointers(call: Call) -> list[Tensor]:
    """bias, rel, extra_k, extra_v, pad_k, pad_v; q stands for those that are not there and not read."""
    return [call.q if x is None else x for x in call[3:]]


def _strides(call: Call) -> tuple[tuple[int, ...], ...]:
    return tuple(_window(x) for x in call[:3])


class Gradients(NamedTuple):
    """Gradients of a `Call`'s tensors, and what makes them."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    rel: Tensor | None
    extra_k: Tensor | None
    extra_v: Tensor | None
    pad_k: Tensor | None
    pad_v: Tensor | None


class Saved(NamedTuple):
    """What the backward kernels read besides the call: results of the forward and their gradients."""

    out: Tensor
    lse: Tensor
    grad_out: Tensor
    grad_lse: Tensor | None
    delta: Tensor


def query_launch(
    call: Call, plan: Plan, scale: float, saved: Saved, grads: Gradients, want_bias: bool
) -> tuple[Launch, Tensor | None]:
    """The launch that fills the gradients of q and rel (of k and v too where fused), and partial sums of the bias'."""
    q, bias = call.q, call.bias
    tile = plan.tiling.backward_query
    flags = _walk_flags(plan, tile, backward=True)
    counts = _counts(plan, tile)
    heads = q.shape[-2]
    items = math.prod(counts) * q.shape[0]
    share, columns = 1, 0
    scratch = partial = q
    if want_bias and bias is not None:
        share = max(1, ceil_div(items * heads, 8 * plan.device.processors))
        columns = _columns(plan, tile, flags)
        groups = ceil_div(items, share)
        scratch = torch.empty(groups * heads * tile.rows * columns, dtype=torch.float32, device=q.device)
        partial = torch.zeros(groups, *bias.shape, dtype=torch.float32, device=q.device)
    elif flags["UNIFORM"]:
        share = _share(items, heads, plan.device, 8)
    extra = 0 if call.extra_k is None else call.extra_k.shape[1]
    arguments = (
        *call[:3], saved.out, saved.grad_out, saved.lse, q if saved.grad_lse is None else saved.grad_lse, saved.delta,
        grads.q, grads.k, grads.v, q if grads.rel is None else grads.rel, scratch, partial, *_pointers(call),
        *_strides(call), plan.query_size, plan.key_size, counts, items, share, extra, columns,
        scale * math.log2(math.e), scale,
    )  # fmt: skip
    reach = [power_of_two(max(16, _axis(plan.pattern, a)[0])) if call.rel is not None else 16 for a in range(3)]
    constants = {
        **plan.shared, **flags, "FUSED": int(fuses(call, plan)), "BIAS_GRAD": int(want_bias), "EXTRA": int(extra > 0),
        "LSE": int(saved.grad_lse is not None), "X0": reach[0], "X1": reach[1], "X2": reach[2],
        "ENTRIES": 16 if bias is None else min(256, power_of_two(max(16, bias[0].numel()))),
    }  # fmt: skip
    launch = Launch("backward_query", (ceil_div(items, share) * heads,), arguments, constants, tile.warps, tile.stages)
    return launch, partial if want_bias else None


def fuses(call: Call, plan: Plan) -> bool:
    """Whether the kernel of the queries' gradients makes those of keys and values too."""
    return plan.tiling.fused and plan.shared["GROUP"] == 1 and not _pads(call, plan)


def _pads(call: Call, plan: Plan) -> bool:
    """Whether keys outside the map hold values that have a gradient."""
    return call.pad_k is not None and bool(plan.shared["HOLES"])


def _columns(plan: Plan, tile: Tile, flags: dict[str, Any]) -> int:
    """Logits that a tile's query has, all boxes together."""
    if flags["UNIFORM"] or tile.pieces > 1:
        return math.prod(tile.box)
    boxes = 1
    axes, _ = three_axes(plan.problem)
    for axis, length, side, box in zip(axes, plan.key_size, tile.tile, tile.box, strict=True):
        boxes *= ceil_div(extents(axis, length, side, False).longest, box)
    return boxes * math.prod(tile.box)


def key_launch(call: Call, plan: Plan, scale: float, saved: Saved, grads: Gradients) -> tuple[Launch, list[Tensor]]:
    """The launch that fills the gradients of k and v, and one row a program of those of pad values."""
    tile = plan.tiling.backward_key
    extend = _pads(call, plan)
    counts = _counts(plan, tile, of_keys=True, extend=extend)
    programs = math.prod(counts) * call.k.shape[0] * call.k.shape[-2]
    d_pads = [torch.empty(programs if extend else 0, x.shape[-1], dtype=torch.float32, device=x.device)
              for x in (call.k, call.v)]  # fmt: skip
    bias, rel, _, _, pad_k, pad_v = _pointers(call)
    arguments = (
        *call[:3], saved.grad_out, saved.lse, saved.delta, grads.k, grads.v, *d_pads, bias, rel, pad_k, pad_v,
        *_strides(call), plan.query_size, plan.key_size, counts, scale * math.log2(math.e), scale,
    )  # fmt: skip
    flags = _flags(plan.pattern, tile, True, plan.problem.relative)
    del flags["EXACT"]
    constants = {
        **plan.shared, **flags, "T": tile.tile, "BOX": tile.box, "BM": tile.rows, "BN": tile.columns,
        "EXTEND": int(extend),
    }  # fmt: skip
    return Launch("backward_key", (programs,), arguments, constants, tile.warps, tile.stages), d_pads


def extra_launch(call: Call, plan: Plan, scale: float, saved: Saved) -> tuple[Launch, list[Tensor]]:
    """The launch that makes partial sums of the gradients of extra keys and values."""
    extra_k, extra_v = call.extra_k, call.extra_v
    assert extra_k is not None and extra_v is not None
    widest = 128 if call.q.element_size() == 2 else 32  # head dim at which tiles of 32 x 32 still fit registers
    side = 32 if max(plan.shared["BD"], plan.shared["BDV"]) <= widest else 16
    splits = min(EXTRA_SPLITS, ceil_div(math.prod(plan.query_size), side))
    sums = [torch.empty(splits, *x.shape, dtype=torch.float32, device=x.device) for x in (extra_k, extra_v)]
    arguments = (
        call.q, saved.grad_out, saved.lse, saved.delta, extra_k, extra_v, *sums, _window(call.q), plan.query_size,
        extra_k.shape[1], splits, scale * math.log2(math.e), scale,
    )  # fmt: skip
    names = ("WIDE", "HEADS", "GROUP", "D", "DV", "BD", "BDV", "PRECISION")
    constants = {**{name: plan.shared[name] for name in names}, "BM": side, "BN": side}
    grid = (extra_k.shape[0] * extra_k.shape[2] * ceil_div(extra_k.shape[1], side), splits)
    return Launch("backward_extra", grid, arguments, constants, 4, 1), sums


def empty_gradients(call: Call) -> Gradients:
    """Memory for the gradients that the kernels write directly."""
    dense = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in call[:3]]
    # Of a query's relative logits only those of its window are written.
    rel = None if call.rel is None else torch.zeros_like(call.rel, dtype=torch.float32)
    return Gradients(*dense, None, rel, None, None, None, None)


def run_backward(call: Call, pattern: LocalPattern, scale: float, saved: Saved, want_bias: bool) -> Gradients:
    """Gradients of all tensors of a call."""
    grads = empty_gradients(call)
    if call.q.shape[0] == 0:
        zeros = (None if x is None else torch.zeros_like(x) for x in call[3:])
        return Gradients(*grads[:3], *zeros)
    plan = plan_of(call, pattern, device_of(call.q.device))
    with torch.cuda.device_of(call.q):
        launch, partial = query_launch(call, plan, scale, saved, grads, want_bias)
        launch.run()
        if partial is not None:
            grads = grads._replace(bias=partial.sum(0))
        if not fuses(call, plan):
            launch, rows = key_launch(call, plan, scale, saved, grads)
            launch.run()
            if call.pad_k is not None and call.pad_v is not None:
                sums = [r.view(-1, call.k.shape[-2], r.shape[-1]).sum(0) for r in rows]
                grads = grads._replace(pad_k=sums[0], pad_v=sums[1])
        elif call.pad_k is not None and call.pad_v is not None:
            grads = grads._replace(pad_k=torch.zeros_like(call.pad_k), pad_v=torch.zeros_like(call.pad_v))
        if call.extra_k is not None and call.extra_k.shape[1]:
            launch, sums = extra_launch(call, plan, scale, saved)
            launch.run()
            grads = grads._replace(extra_k=sums[0].sum(0), extra_v=sums[1].sum(0))
    return grads


# --- autograd --------------------------------------------------------------------------------------------------------


def _relative_table(inputs: Inputs, options: Options) -> Tensor:
    """The tables of three axes in one, (sum of their rows, head_dim), in the dtype of q; axes not there have a zero."""
    missing = inputs.q.new_zeros(3 - len(inputs.rel_tables), inputs.q.shape[-1])
    table = torch.cat([missing, *(t.to(inputs.q.dtype) for t in inputs.rel_tables)])
    return table * options.scale if options.scale_rel else table


def _call(inputs: Inputs, options: Options) -> Call:
    """The call as the kernels take it; the relative logits of each query are one matrix product."""
    rel = inputs.q @ _relative_table(inputs, options).T if inputs.rel_tables else None
    q, k, v = (x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous() for x in inputs[:3])
    others = (None if x is None else x.contiguous() for x in inputs[4:8])
    return Call(q, k, v, None if inputs.bias is None else inputs.bias.contiguous(), rel, *others)


def forward(options: Options, inputs: Inputs, with_lse: bool) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of a call, the second empty unless asked for."""
    return run_forward(_call(inputs, options), options.pattern, options.scale, with_lse)


def backward(
    options: Options,
    inputs: Inputs,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    want_bias: bool,
) -> Inputs:
    """Gradients of a call's tensors, in their dtypes; the bias' only if wanted."""
    call = _call(inputs, options)
    saved = Saved(
        out, lse, grad_out.to(out.dtype).contiguous(), None if grad_lse is None else grad_lse.contiguous(),
        torch.empty_like(lse),
    )  # fmt: skip
    grads = run_backward(call, options.pattern, options.scale, saved, want_bias)
    dq, tables = grads.q, ()
    if grads.rel is not None:
        table = _relative_table(inputs, options).float()
        dq = (dq.float() + grads.rel @ table).to(dq.dtype)
        d_table = grads.rel.flatten(0, -2).T @ inputs.q.reshape(-1, inputs.q.shape[-1]).float()
        d_table = d_table * options.scale if options.scale_rel else d_table
        tables = d_table[3 - len(inputs.rel_tables) :].split([t.shape[0] for t in inputs.rel_tables])
    found = Inputs(dq, grads.k, grads.v, *(grads.bias, grads.extra_k, grads.extra_v, grads.pad_k, grads.pad_v), tables)
    return Inputs.unpack([None if g is None or t is None else g.to(t.dtype)
                          for g, t in zip(found.flat(), inputs.flat(), strict=True)])  # fmt: skip


class _Attention(torch.autograd.Function):
    """The kernels, as eager autograd sees them."""

    @staticmethod
    def forward(ctx: Any, options: Options, *flat: Tensor | None) -> tuple[Tensor, ...]:
        ctx.options = options
        out, lse = forward(options, Inputs.unpack(flat), options.with_lse or any(ctx.needs_input_grad))
        ctx.save_for_backward(*flat, out, lse)
        ctx.set_materialize_grads(False)
        return (out, lse) if options.with_lse else (out,)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor | None) -> tuple[Tensor | None, ...]:
        *flat, out, lse = ctx.saved_tensors
        needed = ctx.needs_input_grad[1:]
        if all(grad is None for grad in incoming):
            return None, *(None for _ in flat)
        if torch.is_grad_enabled():  # a graph of the gradient is wanted
            return None, *differentiable_gradients(ctx.options, flat, needed, incoming)
        grad_out = torch.zeros_like(out) if incoming[0] is None else incoming[0]
        grad_lse = incoming[1] if len(incoming) > 1 else None
        grads = backward(ctx.options, Inputs.unpack(flat), out, lse, grad_out, grad_lse, needed[3])
        return None, *(grad if need else None for grad, need in zip(grads.flat(), needed, strict=True))


def _numbers(pattern: LocalPattern, rank: int) -> list[int]:
    """A pattern as an op's schema takes it."""
    axes = pattern.axes(rank)
    return [n for a in axes for n in (a.kernel_size, a.stride, a.dilation, int(a.causal), a.shift, a.query_stride)]


@lru_cache(maxsize=1024)
def _options(numbers: tuple[int, ...], pad: bool, scale: float, scale_rel: bool) -> Options:
    kernel, stride, dilation, causal, shift, query_stride = (tuple(numbers[i::6]) for i in range(6))
    boundary = "pad" if pad else "shift"
    pattern = LocalPattern(kernel, stride, dilation, tuple(map(bool, causal)), boundary, shift, query_stride)
    return Options(pattern, scale, scale_rel, with_lse=True)


@torch.library.custom_op("visionattn::local_attention", mutates_args=())
def _op(
    tensors: Sequence[Tensor], there: Sequence[bool], pattern: Sequence[int], pad: bool, scale: float, scale_rel: bool
) -> tuple[Tensor, Tensor]:
    """The kernels, as tracers see them. `there`: which of `Inputs.flat` are among `tensors`."""
    options = _options(tuple(pattern), pad, scale, scale_rel)
    return forward(options, _gather(tensors, there), with_lse=True)


@_op.register_fake
def _(tensors, there, pattern, pad, scale, scale_rel):  # type: ignore[no-untyped-def]
    q, _, v = tensors[:3]
    return q.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(q.shape[:-1], dtype=torch.float32)


@torch.library.custom_op("visionattn::local_attention_backward", mutates_args=())
def _backward_op(
    tensors: Sequence[Tensor], there: Sequence[bool], pattern: Sequence[int], pad: bool, scale: float, scale_rel: bool,
    out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor, want_bias: bool,
) -> list[Tensor]:  # fmt: skip
    options = _options(tuple(pattern), pad, scale, scale_rel)
    inputs = _gather(tensors, there)
    grads = backward(options, inputs, out, lse, grad_out, grad_lse, want_bias)
    pairs = zip(grads.flat(), inputs.flat(), strict=True)
    return [torch.zeros_like(t) if g is None else g.contiguous() for g, t in pairs if t is not None]


@_backward_op.register_fake
def _(tensors, there, pattern, pad, scale, scale_rel, out, lse, grad_out, grad_lse, want_bias):  # type: ignore[no-untyped-def]
    return [t.new_empty(t.shape) for t in tensors]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tensors, *ctx.rest = inputs
    ctx.save_for_backward(*tensors, *output)


def _op_backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Any, ...]:
    *tensors, out, lse = ctx.saved_tensors
    there = ctx.rest[0]
    want_bias = bool(there[3]) and tensors[3].requires_grad
    grads = _backward_op(tensors, *ctx.rest, out, lse, grad_out, grad_lse, want_bias)
    return grads, None, None, None, None, None


_op.register_autograd(_op_backward, setup_context=_save)


def _gather(tensors: Sequence[Tensor], there: Sequence[bool]) -> Inputs:
    remaining = iter(tensors)
    return Inputs.unpack([next(remaining) if present else None for present in there])


def local_attention_triton(inputs: Inputs, options: Options) -> tuple[Tensor, ...]:
    """Output (B, *spatial, heads, v_dim) and, with_lse, the log-sum-exp of the logits (B, *spatial, heads)."""
    if not (torch.compiler.is_compiling() or isinstance(inputs.q, FakeTensor)):
        return _Attention.apply(options, *inputs.flat())
    flat = inputs.flat()
    results = _op(
        [t for t in flat if t is not None], [t is not None for t in flat], _numbers(options.pattern, inputs.q.ndim - 3),
        options.pattern.boundary == "pad", options.scale, options.scale_rel,
    )  # fmt: skip
    return results if options.with_lse else results[:1]
