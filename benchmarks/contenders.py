# SPDX-License-Identifier: Apache-2.0
"""Ways to compute local attention, for `benchmarks/kernels.py`, and the definition that they are checked with.

Each takes q, k, v as (B, *spatial, heads, head_dim) and a bias table, and returns the output in the same layout.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from problems import Problem
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from visionattn.kernels import local_attention, use_backend
from visionattn.kernels.pattern import AxisPattern

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
COPIES = 8 * 2**30  # bytes: more copies of K and V than this are not tried
COMPILED_MASK = 8192  # positions above which the dense mask of FlexAttention's set-up would not fit


class LeftOut(Exception):
    """Why a contender does not run a problem."""


# --- the definition --------------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """What each query of a map sees: places of keys, which are there, which it may see, and entries of the bias."""

    key: Tensor
    exists: Tensor
    allowed: Tensor
    relation: Tensor


def seen_along(axis: AxisPattern, length: int) -> Seen:
    """(queries, keys) tables of one axis."""
    cut = axis.tiles(length, length // axis.query_stride, 1, torch.device("cpu"))
    shape = cut.key.shape
    exists = torch.ones(shape, dtype=torch.bool) if cut.key_ok is None else cut.key_ok
    allowed = torch.ones(shape, dtype=torch.bool) if cut.allowed is None else cut.allowed[:, 0].expand(shape)
    relation = cut.relation.expand(shape[0], 1, shape[1])[:, 0]
    return Seen(*(table[cut.home_tile + cut.home_offset] for table in (cut.key, exists, allowed, relation)))


def seen_by(problem: Problem, queries: Tensor) -> Seen:
    """(queries, keys) tables of some queries, by their places in the flat map."""
    places = torch.unravel_index(queries, problem.size)
    rows = len(queries)
    key = relation = torch.zeros(rows, 1, dtype=torch.long)
    exists = allowed = torch.ones(rows, 1, dtype=torch.bool)
    for axis, length, place in zip(problem.axes, problem.size, places, strict=True):
        mine = Seen(*(table[place][:, None] for table in seen_along(axis, length)))
        key = (key[..., None] * length + mine.key).flatten(1)
        relation = (relation[..., None] * (2 * axis.kernel_size - 1) + mine.relation).flatten(1)
        exists, allowed = ((a[..., None] & b).flatten(1) for a, b in ((exists, mine.exists), (allowed, mine.allowed)))
    return Seen(key, exists, allowed, relation)


def exact_rows(problem: Problem, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, queries: Tensor) -> Tensor:
    """Output (queries, heads, head_dim) of the first image in float64, query by query, on the CPU."""
    seen = seen_by(problem, queries)
    q, k, v = (x[0].flatten(0, -3).double().cpu() for x in (q, k, v))
    rows = []
    for i, query in enumerate(queries.tolist()):
        key = [torch.where(seen.exists[i, :, None, None], x[seen.key[i]], 0.0) for x in (k, v)]
        logits = torch.einsum("hd,nhd->hn", q[query], key[0]) * problem.head_dim**-0.5
        if bias is not None:
            logits = logits + bias.detach().double().cpu().flatten(1)[:, seen.relation[i]]
        logits = logits.masked_fill(~seen.allowed[i], -math.inf)
        rows.append(torch.einsum("hn,nhd->hd", logits.softmax(-1), key[1]))
    return torch.stack(rows)


# --- ours ------------------------------------------------------------------------------------------------------------


def visionattn(problem: Problem, device: torch.device) -> Attention:
    """Whatever backend a user gets."""
    return lambda q, k, v, bias: local_attention(q, k, v, problem.pattern, bias=bias)  # type: ignore[return-value]


def visionattn_torch(problem: Problem, device: torch.device) -> Attention:
    """Our torch backend."""

    def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        with use_backend("torch"):
            return local_attention(q, k, v, problem.pattern, bias=bias)  # type: ignore[return-value]

    return run


# --- dense -----------------------------------------------------------------------------------------------------------


def heads_first(x: Tensor) -> Tensor:
    """(B, heads, positions, head_dim)."""
    return x.flatten(1, -3).transpose(1, 2)


def heads_last(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """The inverse of `heads_first`."""
    return x.transpose(1, 2).unflatten(1, size)


def dense(problem: Problem, device: torch.device) -> Attention:
    """PyTorch's fused attention over the whole map: another function, without window, mask or bias."""
    return lambda q, k, v, bias: heads_last(F.scaled_dot_product_attention(*map(heads_first, (q, k, v))), problem.size)


# --- FlexAttention ---------------------------------------------------------------------------------------------------


def flex(problem: Problem, device: torch.device) -> Attention:
    """FlexAttention with the pattern as mask, on the map in raster order; compiled on a GPU.

    Halos are padded before, as keys outside the map take part in the softmax.
    """
    if problem.kind == "halo" and problem.bias:
        raise LeftOut("the bias of halos is not written here")
    if problem.kind != "neighborhood" and any(n % a.stride for n, a in zip(problem.size, problem.axes, strict=True)):
        raise LeftOut("keys beyond the map take part in the softmax")
    if device.type == "cuda" and problem.head_dim < 16:
        raise LeftOut("compiled FlexAttention needs a head dim of at least 16")
    halo = [(a.kernel_size - a.stride) // 2 if problem.kind == "halo" else 0 for a in problem.axes]
    key_size = tuple(n + 2 * h for n, h in zip(problem.size, halo, strict=True))
    padding = (0, 0, 0, 0, *(h for side in reversed(halo) for h in (side, side)))

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        visible = b >= 0
        for axis, length, i, j in zip(problem.axes, problem.size, *_places(problem, key_size, q, k), strict=True):
            visible = visible & _sees(axis, length, i, j)
        return visible

    torch._dynamo.reset()
    lengths = math.prod(problem.size), math.prod(key_size)
    large = device.type == "cuda" and lengths[0] > COMPILED_MASK
    make = torch.compile(create_block_mask) if large else create_block_mask
    mask = make(sees, None, None, *lengths, device=str(device))
    attention = torch.compile(flex_attention, dynamic=False) if device.type == "cuda" else flex_attention

    def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        if any(halo):
            k, v = F.pad(k, padding), F.pad(v, padding)
        score = None if bias is None else _scored(problem, key_size, bias.flatten())
        return heads_last(attention(*map(heads_first, (q, k, v)), score_mod=score, block_mask=mask), problem.size)  # type: ignore[arg-type]

    return run


def _scored(problem: Problem, key_size: tuple[int, ...], table: Tensor) -> Callable[..., Tensor]:
    """Bias added to a logit; one flat index, as a captured table with a gradient may be read only once."""
    entries = math.prod(2 * axis.kernel_size - 1 for axis in problem.axes)

    def score(logit: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        index = h * 0
        for axis, length, i, j in zip(problem.axes, problem.size, *_places(problem, key_size, q, k), strict=True):
            step = _rolled(axis, length, j) - _rolled(axis, length, i)
            if axis.dilation > 1:
                step = j // axis.dilation - i // axis.dilation
            # Hidden keys are scored too: their index must stay inside the table.
            index = index * (2 * axis.kernel_size - 1) + (step + axis.kernel_size - 1).clamp(
                0, 2 * axis.kernel_size - 2
            )
        return logit + table[h * entries + index]

    return score


def _places(problem: Problem, key_size: tuple[int, ...], q: Tensor, k: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    return _unravel(q, problem.size), _unravel(k, key_size)


def _unravel(index: Tensor, size: tuple[int, ...]) -> list[Tensor]:
    places = []
    for length in reversed(size):
        places.append(index % length)
        index = index // length
    return places[::-1]


def _rolled(axis: AxisPattern, length: int, i: Tensor) -> Tensor:
    return (i + length - axis.shift) % length if axis.shift else i


def _sees(axis: AxisPattern, length: int, i: Tensor, j: Tensor) -> Tensor:
    """Whether query i sees key j, which counts from the start of the padded axis under a halo."""
    kernel, stride, dilation = axis.kernel_size, axis.stride, axis.dilation
    if axis.boundary == "pad" and kernel == stride:
        same = _rolled(axis, length, i) // stride == _rolled(axis, length, j) // stride
        return same & ((i < axis.shift) == (j < axis.shift)) if axis.shift else same
    if axis.boundary == "pad":
        first = i // stride * stride
        return (j >= first) & (j < first + kernel)
    group, m, t = i % dilation, i // dilation, j // dilation
    last = (length - 1 - group) // dilation
    leader = m // stride * stride + (stride - 1 if axis.causal else stride // 2)
    leader = torch.minimum(leader, last)
    if axis.causal:
        return (j % dilation == group) & (t > leader - kernel) & (t <= m)
    first = torch.minimum((leader - kernel // 2).clamp(min=0), last + 1 - kernel)
    return (j % dilation == group) & (t >= first) & (t < first + kernel)


# --- partitions, not fused with the attention ------------------------------------------------------------------------


class Cut(NamedTuple):
    """A map in blocks, and the way back: q, k, v are (B, blocks, heads, positions, head_dim).

    `mask` (blocks or 1, heads or 1, queries, keys) is added to the logits.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    back: Callable[[Tensor], Tensor]


def unfused(problem: Problem, device: torch.device) -> Attention:
    """Roll, partition or gather, then matrix product, softmax, matrix product."""

    def attend(cut: Cut) -> Tensor:
        logits = cut.q * problem.head_dim**-0.5 @ cut.k.transpose(-1, -2)
        return (logits if cut.mask is None else logits + cut.mask).softmax(-1) @ cut.v

    return _partitioned(problem, device, attend)


def unfused_sdpa(problem: Problem, device: torch.device) -> Attention:
    """Roll, partition or gather, then PyTorch's fused attention with bias and mask as a tensor."""

    def attend(cut: Cut) -> Tensor:
        mask = cut.mask
        if mask is not None and mask.shape[0] > 1:  # the fused kernels take four axes
            mask = mask.expand(*cut.q.shape[:-1], cut.k.shape[-2]).flatten(0, 1)
        q, k, v = (x.flatten(0, 1) for x in (cut.q, cut.k, cut.v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).view(*cut.q.shape[:-1], -1)

    return _partitioned(problem, device, attend)


def _partitioned(problem: Problem, device: torch.device, attend: Callable[[Cut], Tensor]) -> Attention:
    cut = {"window": _windows, "halo": _halos, "neighborhood": _gathered}[problem.kind](problem, device)

    def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        parts = cut(q, k, v, bias)
        return parts.back(attend(parts))

    return run


def _windows(problem: Problem, device: torch.device) -> Callable[..., Cut]:
    """Swin's own way."""
    (height, width), (side, _), shifts = problem.size, [a.stride for a in problem.axes], [a.shift for a in problem.axes]
    if height % side or width % side:
        raise LeftOut("the map is not made of whole windows")
    seen = seen_by(problem, torch.arange(height * width))
    order = _to_windows(torch.arange(height * width).view(1, height, width, 1, 1), side, shifts).flatten()
    rows = (x[order].view(-1, side * side, side * side).to(device) for x in (seen.allowed, seen.relation))
    allowed, relation = rows
    hidden = None if allowed.all() else torch.zeros(allowed.shape, device=device).masked_fill(~allowed, -100.0)[:, None]
    relation, grid = relation[0], (height // side, width // side)

    def cut(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Cut:
        table = None if bias is None else bias.flatten(1)[:, relation][None]
        parts = [_to_windows(x, side, shifts).transpose(2, 3) for x in (q, k, v)]
        mask = _sum(table, hidden, q.dtype)
        return Cut(*parts, mask, lambda out: _from_windows(out.transpose(2, 3), side, shifts, grid))

    return cut


def _sum(table: Tensor | None, hidden: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    there = [x for x in (table, hidden) if x is not None]
    return sum(there[1:], there[0]).to(dtype) if there else None


def _to_windows(x: Tensor, side: int, shifts: list[int]) -> Tensor:
    """(B, H, W, heads, D) to (B, windows, side * side, heads, D)."""
    if any(shifts):
        x = torch.roll(x, [-shift for shift in shifts], (1, 2))
    b, h, w, *rest = x.shape
    x = x.view(b, h // side, side, w // side, side, *rest).transpose(2, 3)
    return x.reshape(b, -1, side * side, *rest)


def _from_windows(x: Tensor, side: int, shifts: list[int], grid: tuple[int, int]) -> Tensor:
    x = x.reshape(x.shape[0], *grid, side, side, *x.shape[3:]).transpose(2, 3)
    x = x.reshape(x.shape[0], grid[0] * side, grid[1] * side, *x.shape[5:])
    return torch.roll(x, shifts, (1, 2)) if any(shifts) else x


def _halos(problem: Problem, device: torch.device) -> Callable[..., Cut]:
    """Blocks of queries, and unfolded keys and values of a padded map."""
    (block, _), (window, _) = [a.stride for a in problem.axes], [a.kernel_size for a in problem.axes]
    halo, grid = (window - block) // 2, [n // block for n in problem.size]
    if any(n % block for n in problem.size) or problem.bias:
        raise LeftOut("the map is not made of whole blocks, or there is a bias")

    def unfold(x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, 0, halo, halo, halo, halo)).unfold(1, window, block).unfold(2, window, block)
        return x.permute(0, 1, 2, 3, 5, 6, 4).reshape(x.shape[0], -1, x.shape[3], window * window, x.shape[4])

    def cut(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Cut:
        tiles = _to_windows(q, block, [0, 0]).transpose(2, 3)
        back = lambda out: _from_windows(out.transpose(2, 3), block, [0, 0], (grid[0], grid[1]))  # noqa: E731
        return Cut(tiles, unfold(k), unfold(v), None, back)

    return cut


def _gathered(problem: Problem, device: torch.device) -> Callable[..., Cut]:
    """One copy of K and V for each query."""
    copies = 2 * 2 * problem.head_dim * problem.pairs
    if copies > COPIES:
        raise LeftOut(f"one copy of K and V for each query takes {copies / 2**30:.0f} GiB")
    seen = seen_by(problem, torch.arange(math.prod(problem.size)))
    key, relation = seen.key.to(device), seen.relation.to(device)
    hidden = None if seen.allowed.all() else torch.zeros(key.shape, device=device).masked_fill(
        ~seen.allowed.to(device), -math.inf)  # fmt: skip

    def cut(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Cut:
        near = [x.flatten(1, -3)[:, key].transpose(2, 3) for x in (k, v)]  # (B, positions, heads, keys, D): the copies
        table = None if bias is None else bias.flatten(1)[:, relation].transpose(0, 1)[:, :, None]
        mask = _sum(table, None if hidden is None else hidden[:, None, None], q.dtype)
        back = lambda out: out.squeeze(-2).unflatten(1, problem.size)  # noqa: E731
        return Cut(q.flatten(1, -3)[..., None, :], near[0], near[1], mask, back)

    return cut


# --- NATTEN ----------------------------------------------------------------------------------------------------------


def natten(problem: Problem, device: torch.device) -> Attention:
    """NATTEN's own kernels, where it is installed."""
    if importlib.util.find_spec("natten") is None:
        raise LeftOut("natten is not installed")
    if problem.kind != "neighborhood" or problem.bias:
        raise LeftOut("natten has no zero-padded blocks, and no bias since 0.20")
    import natten as library

    op = {1: library.na1d, 2: library.na2d, 3: library.na3d}[len(problem.size)]
    of_axes = {name: tuple(getattr(a, field) for a in problem.axes)
               for name, field in (("kernel_size", "kernel_size"), ("stride", "stride"), ("dilation", "dilation"),
                                   ("is_causal", "causal"))}  # fmt: skip
    return lambda q, k, v, bias: op(q.contiguous(), k.contiguous(), v.contiguous(), **of_axes)


CONTENDERS: dict[str, Callable[[Problem, torch.device], Attention]] = {
    "visionattn": visionattn,
    "visionattn-torch": visionattn_torch,
    "flex": flex,
    "dense": dense,
    "unfused": unfused,
    "unfused-sdpa": unfused_sdpa,
    "natten": natten,
}
