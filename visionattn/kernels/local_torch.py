# SPDX-License-Identifier: Apache-2.0
"""Local attention in plain PyTorch: a tile of queries against the union of their windows, masked.

`attend_tiles` is the whole arithmetic. Eager calls walk the tiles in chunks that fit the cache and save nothing but
their inputs for the backward, which walks them again; tracers (compile, export) and second derivatives get the same
arithmetic over all tiles at once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache, reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.checkpoint import checkpoint

from visionattn.kernels import tiling
from visionattn.kernels.pattern import AxisTiles, LocalPattern, is_symbolic
from visionattn.kernels.tiling import BiasIndex, cut_axes, extended, home_rows, largest, tile_biases, tile_rows


class Inputs(NamedTuple):
    """The tensors of one call; q, k, v are (B, *spatial, heads, head_dim)."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None = None
    extra_k: Tensor | None = None
    extra_v: Tensor | None = None
    pad_k: Tensor | None = None
    pad_v: Tensor | None = None
    rel_tables: tuple[Tensor, ...] = ()

    @classmethod
    def unpack(cls, flat: Sequence[Tensor | None]) -> Inputs:
        """The inverse of `flat`."""
        return cls(*flat[:8], rel_tables=tuple(flat[8:]))  # type: ignore[arg-type]

    def flat(self) -> tuple[Tensor | None, ...]:
        """All tensors in a row, as autograd wants them."""
        return (*self[:8], *self.rel_tables)


class Options(NamedTuple):
    """What of a call is not a tensor."""

    pattern: LocalPattern
    scale: float
    scale_rel: bool = False
    with_lse: bool = False


def local_attention_torch(inputs: Inputs, options: Options) -> tuple[Tensor, ...]:
    """Output (B, *spatial, heads, v_dim) and, with_lse, the log-sum-exp of the logits (B, *spatial, heads)."""
    if torch.compiler.is_exporting() or is_symbolic(*inputs.q.shape, *inputs.k.shape):
        # Explicit, because the strides of the fused attention's output tie the graph to the example's batch.
        return _all_at_once(options, True, *inputs.flat())
    if torch.compiler.is_compiling():
        if not torch.is_grad_enabled():
            return _all_at_once(options, False, *inputs.flat())
        # The checkpoint keeps the partitioner from saving tiled copies for the backward.
        return checkpoint(_all_at_once, options, False, *inputs.flat(), use_reentrant=False)
    if inputs.q.is_meta or isinstance(inputs.q, FakeTensor):
        return _all_at_once(options, False, *inputs.flat())
    return _Tiled.apply(options, *inputs.flat())


# --- arithmetic ------------------------------------------------------------------------------------------------


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What half precision is accumulated in."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, options: Options, explicit: bool
) -> tuple[Tensor, ...]:
    """Attention of q (n, h, T, D) over k (n, h, S, D) and v (n, h, S, V), and, with_lse, the log-sum-exp (n, h, T).

    The bias broadcasts to (n, h, T, S). PyTorch's fused attention does the work unless the log-sum-exp, the gradient of
    the bias or a second derivative is wanted (`explicit`), which it does not offer.
    """
    if not (explicit or options.with_lse):
        return (F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=options.scale),)
    batch, dtype = q.shape[:2], q.dtype
    q, k, v = (x.flatten(0, 1).to(wide_dtype(dtype)) for x in (q, k, v))
    logits = torch.bmm(q * options.scale, k.transpose(1, 2)).unflatten(0, batch)
    if bias is not None:
        logits = logits.add_(bias)
    weights = logits.softmax(-1)
    out = torch.bmm(weights.flatten(0, 1), v).unflatten(0, batch).to(dtype)
    if not options.with_lse:
        return (out,)
    # Not logsumexp: exp is many times slower than softmax where it meets -inf.
    return out, logits.amax(-1) - weights.amax(-1).log()


def relative_logits(q: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """Sum over the axes of <q, table>: q (n, h, T, D), one table (T_axis, S_axis, D) an axis; result (n, h, T, S)."""
    rank = len(tables)
    q = q.unflatten(2, [table.shape[0] for table in tables])
    parts = []
    for axis, table in enumerate(tables):
        part = torch.einsum("n...td,tsd->n...ts", q.movedim(2 + axis, -2), table).movedim(-2, 2 + axis)
        shape = [1] * rank
        shape[axis] = table.shape[1]
        parts.append(part.reshape(*part.shape[:-1], *shape))  # (n, h, *T, 1.. S_axis ..1)
    return reduce(torch.add, parts).flatten(2 + rank).flatten(2, 1 + rank)


def attend_tiles(tiles: Inputs, key_ok: Tensor | None, options: Options, explicit: bool) -> tuple[Tensor, ...]:
    """Attention inside tiles: q (n, T, h, D), k (n, S, h_kv, D), v (n, S, h_kv, V) give (n, T, h, V) and (n, T, h).

    bias is (n or 1, h or 1, T, S), extra_k and extra_v (n, E, h_kv, .), pad_k and pad_v (h_kv, .), a relative table
    (T_axis, S_axis, D), key_ok (n or 1, S).
    """
    q, k, v, bias = tiles.q.transpose(1, 2), tiles.k, tiles.v, tiles.bias
    if key_ok is not None:
        ok = key_ok[:, :, None, None]
        k = torch.where(ok, k, k.new_zeros(()) if tiles.pad_k is None else tiles.pad_k)
        v = torch.where(ok, v, v.new_zeros(()) if tiles.pad_v is None else tiles.pad_v)
    if tiles.rel_tables:
        logits = relative_logits(q, tiles.rel_tables)
        logits = logits * options.scale if options.scale_rel else logits
        bias = logits if bias is None else logits + bias
    if tiles.extra_k is not None and tiles.extra_v is not None:
        k, v = torch.cat([k, tiles.extra_k], 1), torch.cat([v, tiles.extra_v], 1)
        bias = None if bias is None else F.pad(bias, (0, tiles.extra_k.shape[1]))
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    if k.shape[1] != q.shape[1]:  # grouped-query attention
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    return tuple(x.transpose(1, 2) for x in attend(q, k, v, bias, options, explicit))


# --- all tiles at once: for tracers and second derivatives -----------------------------------------------------


def _all_at_once(options: Options, explicit: bool, *flat: Tensor | None) -> tuple[Tensor, ...]:
    x = Inputs.unpack(flat)
    batch, *query_size, heads, _ = x.q.shape
    key_size = x.k.shape[1:-2]
    axes = cut_axes(options.pattern, query_size, key_size, x.q.shape[-1], bool(x.rel_tables), x.q.device)
    query, _ = tile_rows(axes, "query", query_size)
    key, key_ok = tile_rows(axes, "key", key_size)
    n, side = query.shape

    def cut(source: Tensor, rows: Tensor) -> Tensor:
        return source.flatten(1, -3)[:, rows.flatten()].unflatten(1, rows.shape).flatten(0, 1)

    def each_tile(extra: Tensor | None) -> Tensor | None:
        return None if extra is None else extra[:, None].expand(-1, n, -1, -1, -1).flatten(0, 1)

    bias = tile_biases(axes, options.pattern, x.bias, x.q.dtype)
    if bias is not None and (is_symbolic(bias.shape[0]) or bias.shape[0] > 1):
        bias = bias.repeat(batch, 1, 1, 1)
    if key_ok is not None:
        key_ok = key_ok.repeat(batch, 1)
    tables = tuple(table[axis.relation[0]].to(x.q.dtype) for table, axis in zip(x.rel_tables, axes, strict=False))
    tiles = Inputs(cut(x.q, query), cut(x.k, key), cut(x.v, key), bias, each_tile(x.extra_k), each_tile(x.extra_v),
                   x.pad_k, x.pad_v, tables)  # fmt: skip
    return tuple(
        result.reshape(batch, n * side, *result.shape[2:])[:, home_rows(axes)].unflatten(1, query_size)
        for result in attend_tiles(tiles, key_ok, options, explicit)
    )


# --- kind by kind, chunk by chunk: for eager calls -------------------------------------------------------------


class Sizes(NamedTuple):
    """What the kinds of tiles of a call depend on besides its options: q and k are (*spatial, heads, head_dim)."""

    query: tuple[int, ...]
    key: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    whole_blocks: bool
    merge: bool


class Kind(NamedTuple):
    """Tiles that differ in nothing but their place, or, in a merged kind, in their bias.

    Rows of their queries (n, T) and keys (n, S) in the flattened map, which of these exist (1, ·; None: all), the bias
    they share (index of 1, or of n in a merged kind) as far as it is a mask, and each axis' (T_axis, S_axis) rows of
    the relative tables. `whole`: the only tile is the map.
    """

    query: Tensor
    query_ok: Tensor | None
    key: Tensor
    key_ok: Tensor | None
    index: BiasIndex
    mask: Tensor | None
    relations: tuple[Tensor, ...]
    whole: bool

    def bias(self, table: Tensor | None) -> Tensor | None:
        """Bias and mask (1 or n, heads or 1, T, S) with an `extended` table."""
        return self.mask if table is None else self.index.bias(table, table.dtype)


def _axis_kinds(axis: AxisTiles) -> list[AxisTiles]:
    """The tiles of an axis, grouped: inside a map nearly all look alike."""
    count, side = axis.query.shape
    span = axis.key.shape[1]
    fields = (axis.relation, axis.allowed, axis.query_ok, axis.key_ok)
    likes = ((count, side, span), (count, side, span), (count, side), (count, span))
    columns = [torch.ones(like) if field is None else field.cpu().expand(like)
               for field, like in zip(fields, likes, strict=True)]  # fmt: skip
    features = torch.cat([column.reshape(count, -1).long() for column in columns], 1)
    unique, inverse = torch.unique(features, dim=0, return_inverse=True)
    groups = []
    for kind in range(len(unique)):
        at = (inverse == kind).nonzero().flatten().to(axis.query.device)
        one = [None if field is None else field.expand(like)[at[:1]] for field, like in zip(fields, likes, strict=True)]
        one = [None if mask is None or (i and bool(mask.all())) else mask for i, mask in enumerate(one)]
        groups.append(axis._replace(query=axis.query[at], query_ok=one[2], key=axis.key[at], key_ok=one[3],
                                    relation=one[0], allowed=one[1]))  # fmt: skip
    return groups


@lru_cache(maxsize=64)
def tile_kinds(options: Options, sizes: Sizes) -> tuple[Kind, ...]:
    """The kinds of tiles of a map."""
    cut = cut_axes(options.pattern, sizes.query[:-2], sizes.key[:-2], sizes.query[-1], sizes.whole_blocks, sizes.device)
    kinds = []
    for axes in itertools.product(*(_axis_kinds(axis) for axis in cut)):
        query, query_ok = tile_rows(axes, "query", sizes.query[:-2])
        key, key_ok = tile_rows(axes, "key", sizes.key[:-2])
        exist = [None if ok is None else ok[:1] for ok in (query_ok, key_ok)]
        whole = exist == [None, None] and all(
            rows.numel() == math.prod(size[:-2]) and bool((rows.flatten().diff() == 1).all())
            for rows, size in ((query, sizes.query), (key, sizes.key))
        )
        one = [axis._replace(query=axis.query[:1], key=axis.key[:1]) for axis in axes]
        index = BiasIndex.of(one, options.pattern)
        relations = tuple(axis.relation[0] for axis in axes)
        kinds.append(Kind(query, exist[0], key, exist[1], index, index.bias(None, sizes.dtype), relations, whole))
    return _merged(kinds, sizes) if sizes.merge else tuple(kinds)


def _merged(kinds: list[Kind], sizes: Sizes) -> tuple[Kind, ...]:
    """The kinds with all but the largest made one, whose tiles have a bias each; those with missing pixels stay."""
    few = sorted((k for k in kinds if k.query_ok is None and k.key_ok is None), key=lambda k: len(k.query))[:-1]
    biases = sizes.query[-2] * sum(len(kind.query) * kind.index.index[0].numel() for kind in few)
    if len(few) < 2 or biases > 2 * tiling.CHUNK:
        return tuple(kinds)
    indices = [kind.index.index.expand(len(kind.query), -1, -1) for kind in few]
    index = BiasIndex(torch.cat(indices), few[0].index.size, any(kind.index.hides for kind in few))
    query, key = torch.cat([kind.query for kind in few]), torch.cat([kind.key for kind in few])
    one = Kind(query, None, key, None, index, index.bias(None, sizes.dtype), few[0].relations, whole=False)
    return (*(kind for kind in kinds if all(kind is not other for other in few)), one)


def slice_heads(x: Inputs, heads: slice, kv_heads: slice) -> Inputs:
    """Views of some heads of everything."""
    return Inputs(
        x.q[..., heads, :],
        x.k[..., kv_heads, :],
        x.v[..., kv_heads, :],
        None if x.bias is None else x.bias[heads],
        None if x.extra_k is None else x.extra_k[:, :, kv_heads],
        None if x.extra_v is None else x.extra_v[:, :, kv_heads],
        None if x.pad_k is None else x.pad_k[kv_heads],
        None if x.pad_v is None else x.pad_v[kv_heads],
        x.rel_tables,
    )


def head_slices(heads: int, kv_heads: int, numbers: int) -> Iterator[tuple[slice, slice]]:
    """Heads of q, and of k and v, worked on together: as many as fit a chunk at `numbers` each."""
    group = heads // kv_heads
    together = max(1, tiling.CHUNK // (numbers * group))
    for start in range(0, kv_heads, together):
        stop = min(start + together, kv_heads)
        yield slice(start * group, stop * group), slice(start, stop)


def as_rows(x: Tensor) -> Tensor:
    """(B, *spatial, heads, D) as (B * pixels, heads * D); a view wherever the strides allow."""
    return x.flatten(0, -3).flatten(-2)


class Chunk(NamedTuple):
    """Some tiles of one kind, of some images: which image, rows in the flattened batch, and place in the kind."""

    image: Tensor
    query: Tensor
    key: Tensor
    place: slice

    def bias(self, bias: Tensor | None) -> Tensor | None:
        """The chunk's part of a kind's bias."""
        return bias if bias is None or bias.shape[0] == 1 else bias[self.place]


class Walk:
    """The work of one call on some of its heads, cut into chunks."""

    def __init__(self, inputs: Inputs, backward: bool) -> None:
        self.x, self.backward = inputs, backward
        self.rows = [as_rows(t) for t in inputs[:3]]
        self.images = torch.arange(inputs.q.shape[0], device=inputs.q.device)

    def chunks(self, kind: Kind) -> Iterator[Chunk]:
        """All tiles of a kind in all images, as many together as fit."""
        q, tiles = self.x.q, kind.query.shape[0]
        query, key = kind.query, kind.key
        if q.shape[0] > 1:
            query, key = (
                (self.images[:, None, None] * math.prod(t.shape[1:-2]) + rows).flatten(0, 1)
                for t, rows in ((q, query), (self.x.k, key))
            )
        # The backward holds several tensors of the size of the logits at once.
        room = tiling.CHUNK // 2 if self.backward else tiling.CHUNK
        at_once = max(1, room // (q.shape[-2] * largest(query.shape[1], key.shape[1], q.shape[-1])))
        image = self.images[:, None].expand(-1, tiles).flatten()
        for start in range(0, query.shape[0], at_once):
            place = slice(start, min(start + at_once, query.shape[0]))
            yield Chunk(image[place], query[place], key[place], place)

    def read(self, kind: Kind, chunk: Chunk, bias: Tensor | None) -> Inputs:
        """The chunk's tiles."""
        x = self.x

        def cut(index: int, at: Tensor) -> Tensor:
            rows = self.rows[index]
            if kind.whole:  # tiles are images: no copy
                rows = rows.unflatten(0, (x.q.shape[0], -1))[chunk.place]
            else:
                rows = rows.index_select(0, at.flatten())
            return rows.view(*at.shape, x[index].shape[-2], -1)  # type: ignore[union-attr]

        extra = [None if t is None else t.index_select(0, chunk.image) for t in (x.extra_k, x.extra_v)]
        tables = (t[relation].to(x.q.dtype) for t, relation in zip(x.rel_tables, kind.relations, strict=False))
        return Inputs(cut(0, chunk.query), cut(1, chunk.key), cut(2, chunk.key), chunk.bias(bias), *extra, x.pad_k,
                      x.pad_v, tuple(tables))  # fmt: skip


def walks(
    options: Options, inputs: Inputs, *others: Inputs
) -> Iterator[tuple[tuple[Kind, ...], Walk, list[Inputs], slice]]:
    """The kinds of tiles of a call and, for as many heads as go together, their walk and the same part of `others`."""
    q, k, has_tables = inputs.q, inputs.k, bool(inputs.rel_tables)
    # Tiles of several images share a kind's bias; those of one are few, and better off in one piece.
    merge = q.shape[0] == 1 and not has_tables
    sizes = Sizes(tuple(q.shape[1:]), tuple(k.shape[1:]), q.dtype, q.device, has_tables, merge)
    kinds = tile_kinds(options._replace(scale=1.0, with_lse=False), sizes)
    numbers = max(largest(kind.query.shape[1], kind.key.shape[1], q.shape[-1]) for kind in kinds)
    for heads, kv_heads in head_slices(q.shape[-2], k.shape[-2], numbers):
        parts = [inputs, *others]
        if heads.stop - heads.start < q.shape[-2]:
            parts = [slice_heads(x, heads, kv_heads) for x in parts]
        yield kinds, Walk(parts[0], backward=bool(others)), parts[1:], heads


def result_rows(results: Sequence[Tensor | None], heads: slice) -> list[Tensor | None]:
    """Rows of some heads of the output and of the log-sum-exp, or of their gradients."""
    parts = [None if r is None else r[..., heads, :] if i == 0 else r[..., heads, None] for i, r in enumerate(results)]
    return [None if part is None else as_rows(part) for part in parts]


def _forward(options: Options, inputs: Inputs) -> tuple[Tensor, ...]:
    q = inputs.q
    results = [q.new_empty(*q.shape[:-1], inputs.v.shape[-1])]
    if options.with_lse:
        results.append(q.new_empty(q.shape[:-1], dtype=wide_dtype(q.dtype)))
    for kinds, walk, _, heads in walks(options, inputs):
        targets = result_rows(results, heads)
        table = extended(walk.x.bias, q.dtype)
        for kind in kinds:
            bias = kind.bias(table)
            for chunk in walk.chunks(kind):
                tiles = attend_tiles(walk.read(kind, chunk, bias), kind.key_ok, options, explicit=False)
                at = chunk.query if kind.query_ok is None else chunk.query[:, kind.query_ok[0]]
                for target, tile in zip(targets, tiles, strict=True):
                    tile = tile if kind.query_ok is None else tile[:, kind.query_ok[0]]
                    target.index_copy_(0, at.flatten(), tile.reshape(at.numel(), -1))  # type: ignore[union-attr]
    return tuple(results)


def _backward(options: Options, inputs: Inputs, incoming: Sequence[Tensor | None]) -> Inputs:
    total = Inputs.unpack([None if t is None else torch.zeros(t.shape, dtype=wide_dtype(t.dtype), device=t.device)
                           for t in inputs.flat()])  # fmt: skip
    for kinds, walk, (grads,), heads in walks(options, inputs, total):
        sources = result_rows(incoming, heads)
        rows = [as_rows(t) for t in grads[:3]]
        with torch.enable_grad():
            leaf = None if walk.x.bias is None else walk.x.bias.detach().requires_grad_()
            table = extended(leaf, wide_dtype(inputs.q.dtype))
        for kind in kinds:
            with torch.enable_grad():
                bias = kind.bias(table)
            total_bias = None if bias is None or table is None else torch.zeros_like(bias)
            for chunk in walk.chunks(kind):
                tiles = _tile_gradients(options, walk.read(kind, chunk, bias), kind, chunk, sources, table is not None)
                for target, at, tile in zip(rows, (chunk.query, chunk.key, chunk.key), tiles[:3], strict=True):
                    target.index_add_(0, at.flatten(), tile.reshape(at.numel(), -1).to(target.dtype))
                if total_bias is not None:
                    part = chunk.bias(total_bias)
                    part += tiles.bias
                _add_shared(grads, tiles, kind, chunk)
            if total_bias is not None:
                grads.bias.add_(torch.autograd.grad(bias, leaf, total_bias, retain_graph=True)[0])  # type: ignore[union-attr]
    return total


def _add_shared(grads: Inputs, tiles: Inputs, kind: Kind, chunk: Chunk) -> None:
    """Add the gradients of what several tiles share besides the bias."""
    for total, tile in ((grads.extra_k, tiles.extra_k), (grads.extra_v, tiles.extra_v)):
        if total is not None and tile is not None:
            total.index_add_(0, chunk.image, tile.to(total.dtype))
    for total, tile in ((grads.pad_k, tiles.pad_k), (grads.pad_v, tiles.pad_v)):
        if total is not None and tile is not None:
            total += tile
    for relation, total, tile in zip(kind.relations, grads.rel_tables, tiles.rel_tables, strict=False):
        total.index_add_(0, relation.flatten(), tile.flatten(0, 1).to(total.dtype))


def _tile_gradients(
    options: Options, tiles: Inputs, kind: Kind, chunk: Chunk, sources: Sequence[Tensor | None], explicit: bool
) -> Inputs:
    """Gradients of a chunk's tiles, by differentiating `attend_tiles`."""
    with torch.enable_grad():
        leaves = [None if t is None else t.detach().requires_grad_() for t in tiles.flat()]
        if not explicit and leaves[3] is not None:
            leaves[3].requires_grad_(False)  # a mask
        results = attend_tiles(Inputs.unpack(leaves), kind.key_ok, options, explicit or bool(tiles.rel_tables))
    used, incoming = [], []
    for result, rows in zip(results, sources, strict=True):
        if rows is not None:
            grad = rows.index_select(0, chunk.query.flatten()).view(result.shape)
            if kind.query_ok is not None:
                grad = grad * kind.query_ok.view(1, -1, *[1] * (grad.ndim - 2))
            used.append(result)
            incoming.append(grad)
    wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    found = iter(torch.autograd.grad(used, wanted, incoming, allow_unused=True, materialize_grads=True))
    return Inputs.unpack([None if leaf is None or not leaf.requires_grad else next(found) for leaf in leaves])


class _Tiled(torch.autograd.Function):
    """Saves the inputs alone; the backward walks the tiles again."""

    @staticmethod
    def forward(ctx: Any, options: Options, *flat: Tensor | None) -> tuple[Tensor, ...]:
        ctx.options = options
        ctx.save_for_backward(*flat)
        ctx.set_materialize_grads(False)
        return _forward(options, Inputs.unpack(flat))

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor | None) -> tuple[Tensor | None, ...]:
        flat, needed = ctx.saved_tensors, ctx.needs_input_grad[1:]
        if all(grad is None for grad in incoming):
            return None, *(None for _ in flat)
        if torch.is_grad_enabled():  # a graph of the gradient is wanted
            return None, *differentiable_gradients(ctx.options, flat, needed, incoming)
        grads = _backward(ctx.options, Inputs.unpack(flat), incoming).flat()
        return None, *(g.to(t.dtype) if need else None for g, t, need in zip(grads, flat, needed, strict=True))


def differentiable_gradients(
    options: Options, flat: Sequence[Tensor | None], needed: Sequence[bool], incoming: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Gradients of a call's tensors as a graph that can be differentiated again; all tiles at once."""
    pairs = [(r, g) for r, g in zip(_all_at_once(options, True, *flat), incoming, strict=True) if g is not None]
    results, grads = zip(*pairs, strict=True)
    wanted = [t for t, need in zip(flat, needed, strict=True) if need]
    found = iter(torch.autograd.grad(results, wanted, grads, create_graph=True, allow_unused=True))
    return [next(found) if need else None for need in needed]
